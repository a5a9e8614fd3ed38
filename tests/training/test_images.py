"""The photographs that a config names, and which of their captions the networks get."""

import dataclasses

import pytest

from tests.training import tiny
from xpsr_jax.config import load_config
from xpsr_jax.data.captions import Caption, write_captions
from xpsr_jax.data.examples import make_example, tokenize
from xpsr_jax.training.export import load_tokenizer
from xpsr_jax.training.images import open_images


@pytest.mark.parametrize(
    ("name", "expected"),
    [("xpsr", "of the degraded one"), ("xpsr_released", "picture 0.png")],
    ids=["paper", "released"],
)
def test_captions_of_degraded_images_are_the_papers_choice(name, expected, images, tmp_path):
    """The presets differ by `data.high_caption_from`, once `images.lr_captions` gives it a choice."""
    file = tmp_path / "lr.jsonl"
    write_captions(file, {"0.png": Caption("of the degraded one", "blurry")})
    source = open_images(dataclasses.replace(images, lr_captions=file))
    assert [sample.lr_caption for sample in source] == [Caption("of the degraded one", "blurry"), *[None] * 4]
    tokenizer = load_tokenizer(tiny.NETWORKS)
    # The released code has the empty string in its place after all, which is another field.
    data = dataclasses.replace(load_config(f"configs/{name}.py").data, crop_size=tiny.SIZE, high_dropout=0.0)
    chosen = [make_example(source[i], data, tokenizer=tokenizer, seed=0, index=i)["high_ids"] for i in (0, 1)]
    assert chosen[0].tolist() == tokenize(expected, tokenizer).tolist()
    assert chosen[1].tolist() == tokenize("picture 1.png", tokenizer).tolist()  # for want of another
