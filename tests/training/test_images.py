"""The photographs of a config, and the captions that the networks get."""

import dataclasses

import pytest
import tyro

from tests.training import tiny
from xpsr_jax.config import Images, load_config
from xpsr_jax.data.captions import Caption, write_captions
from xpsr_jax.data.examples import make_example, tokenize_caption
from xpsr_jax.errors import UserError
from xpsr_jax.training import resume
from xpsr_jax.training.export import tokenizer_of
from xpsr_jax.training.images import open_images


def test_mixtures(tmp_path):
    """A mixture is a flat list on the command line. Each folder has its own captions and its share of the samples."""
    for folder, count in (("a", 3), ("b", 5)):
        tiny.make_photos(tmp_path / folder, count)
    line = ["--mixture", "1", str(tmp_path / "a"), "3", str(tmp_path / "b")]
    images = tyro.cli(Images, args=line)
    assert images.mixture == ((1.0, tmp_path / "a"), (3.0, tmp_path / "b"))
    source = open_images(images)
    assert len(source) == 12 and [source[i].path for i in (0, 2, 3, 11)] == ["0.png", "2.png", "0.png", "3.png"]
    assert source[3].caption.high == "picture 0.png"
    assert len(open_images(dataclasses.replace(images, exclude=("b/4.png", "b/3.png")))) == 12
    assert len(open_images(dataclasses.replace(images, exclude=("a/0.png", "b/4.png"), cache=True))) == 8
    # An image's name is excluded in every folder.
    assert len(open_images(dataclasses.replace(images, exclude=("0.png", "4.png")))) == 8
    for pattern in ("9.png", "c/0.png"):
        with pytest.raises(UserError, match=f"the exclusion '{pattern}' matches no image in any folder of the mixture"):
            open_images(dataclasses.replace(images, exclude=(pattern,)))
    nowhere = dataclasses.replace(images, exclude=("9.png", "c/0.png"), missing_exclusions="ignore")
    assert len(open_images(nowhere)) == 12
    with pytest.raises(UserError, match=r"exclusion '7\.png' matches no image"):
        open_images(dataclasses.replace(images, exclude=("b/7.png",)))
    with pytest.raises(UserError, match=r"do not work with images\.mixture"):
        dataclasses.replace(images, captions=tmp_path / "captions.jsonl")
    record = resume.record(dataclasses.replace(tiny.config(), images=images), photographs=12)
    assert resume.config_of(record).images == images


@pytest.mark.parametrize(
    ("name", "expected"),
    [("xpsr", "of the degraded one"), ("xpsr_released", "picture 0.png")],
    ids=["paper", "released"],
)
def test_captions_of_degraded_images_are_the_papers_choice(name, expected, images, tmp_path):
    """With `images.lr_captions`, `data.high_caption_from` has an effect, and the presets differ in it."""
    file = tmp_path / "lr.jsonl"
    write_captions(file, {"0.png": Caption("of the degraded one", "blurry")})
    source = open_images(dataclasses.replace(images, lr_captions=file))
    assert [sample.lr_caption for sample in source] == [Caption("of the degraded one", "blurry"), *[None] * 4]
    tokenizer = tokenizer_of(tiny.NETWORKS)
    # The released code then replaces the caption by the empty string, which is another field.
    data = dataclasses.replace(load_config(f"configs/{name}.py").data, crop_size=tiny.SIZE, high_dropout=0.0)
    chosen = [make_example(source[i], data, tokenizer=tokenizer, seed=0, index=i)["high_ids"] for i in (0, 1)]
    assert chosen[0].tolist() == tokenize_caption(expected, tokenizer).tolist()
    assert chosen[1].tolist() == tokenize_caption("picture 1.png", tokenizer).tolist()  # its only caption
