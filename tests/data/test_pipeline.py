"""Batches: their contents, and that they depend only on the seed and the position."""

import collections
import contextlib
import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from xpsr_jax.data.captions import Caption
from xpsr_jax.data.config import BICUBIC, DataConfig
from xpsr_jax.data.examples import make_example, random_crop, tokenize_caption
from xpsr_jax.data.image_folder import ImageFolder
from xpsr_jax.data.kernels import sharpen
from xpsr_jax.data.pipeline import make_pipeline
from xpsr_jax.data.resize import resize
from xpsr_jax.data.rounding import round_to_uint8
from xpsr_jax.data.sample_sources import Skipping
from xpsr_jax.data.samples import Sample
from xpsr_jax.errors import UserError

CONFIG = DataConfig(crop_size=32, clean_input_probability=0.0, threads=1)


class Photos:
    """A source of parts of one photograph. The high-level caption contains the part's number."""

    def __init__(self, photo, count=7):
        pixels = round_to_uint8(photo)
        self._images = [pixels[10 * i : 10 * i + 40, 20 * i : 20 * i + 56] for i in range(count)]

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        return Sample(self._images[index], Caption(f"photo {index}", "sharp file"), f"{index}.png")


@pytest.fixture(scope="module")
def source(photo) -> Photos:
    return Photos(photo)


def batches(source, config=CONFIG, *, count, tokenizer=None, **options):
    options = {"seed": 5, "batch_size": 4} | options
    return list(itertools.islice(make_pipeline(source, config, tokenizer=tokenizer, **options), count))


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def examples(source, config, tokenizer, count, seed=0):
    return [make_example(source[0], config, tokenizer=tokenizer, seed=seed, index=i) for i in range(count)]


def test_a_batch(source, tokenizer):
    (batch,) = batches(source, tokenizer=tokenizer, count=1)
    shapes = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert shapes == {
        "hr": ("float32", (4, 32, 32, 3)),
        "lr": ("float32", (4, 32, 32, 3)),
        "high_ids": ("int32", (4, 77)),
        "low_ids": ("int32", (4, 77)),
        "key": ("uint32", (4,)),
        "index": ("int64", (4,)),
    }
    assert batch["hr"].min() >= -1 and batch["hr"].max() <= 1 and batch["hr"].min() < -0.3
    assert batch["lr"].min() >= 0 and batch["lr"].max() <= 1
    for image in (batch["hr"] * 127.5 + 127.5, batch["lr"] * 255):
        np.testing.assert_allclose(image, np.rint(image), atol=2e-5)  # measured 1.5e-5
    assert batch["index"].tolist() == [0, 1, 2, 3] and len(set(batch["key"].tolist())) == 4


def test_target_is_sharpened_and_lr_is_enlarged(source, tokenizer):
    config = replace(CONFIG, flip_probability=0.0, degradation=replace(BICUBIC, sharpen=True))
    example = make_example(source[3], config, tokenizer=tokenizer, seed=1, index=2)
    crop = make_example(source[3], replace(config, degrade=False), tokenizer=None, seed=1, index=2)["hr"]
    target = sharpen((crop * 127.5 + 127.5).round() / np.float32(255))
    np.testing.assert_allclose(example["hr"] * 127.5 + 127.5, round_to_uint8(target), atol=2e-5)
    enlarged = resize(np.clip(resize(target, (8, 8), "bicubic"), 0, 1), (32, 32), "bicubic")
    np.testing.assert_allclose(example["lr"] * 255, round_to_uint8(enlarged), atol=2e-5)


def test_examples_depend_only_on_seed_and_index(source, tokenizer):
    first = batches(source, tokenizer=tokenizer, count=4)
    for a, b in zip(first, batches(source, replace(CONFIG, threads=3), tokenizer=tokenizer, count=4), strict=True):
        assert_equal(a, b)
    other = batches(source, tokenizer=tokenizer, count=4, seed=6)
    assert not np.array_equal(first[0]["hr"], other[0]["hr"]) and not np.array_equal(first[0]["key"], other[0]["key"])
    # A single element, made without the pipeline:
    words = tokenizer.read(first[1]["high_ids"][2])
    index = int(words.split()[1])
    example = make_example(source[index], CONFIG, tokenizer=tokenizer, seed=5, index=6)
    assert_equal(example, {key: value[2] for key, value in first[1].items()})


def test_an_epoch_sees_each_photo_once_and_each_epoch_differs(source, tokenizer):
    stream = [tokenizer.read(ids) for b in batches(source, tokenizer=tokenizer, count=7) for ids in b["high_ids"]]
    epochs = [stream[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == [f"photo {i}" for i in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_without_shuffling(source, tokenizer):
    found = batches(source, tokenizer=tokenizer, count=3, shuffle=False, epochs=1)
    assert [tokenizer.read(ids) for b in found for ids in b["high_ids"]] == [f"photo {i}" for i in range(4)]


@pytest.mark.parametrize("epochs", [None, 5])
def test_processes_share_the_same_stream(source, tokenizer, epochs):
    """35 examples in batches of 4: each of 2 processes gets halves of the same 8 batches."""
    options = {"tokenizer": tokenizer, "epochs": epochs, "count": 8 if epochs is None else 99}
    whole = batches(source, **options)
    parts = [batches(source, process_index=i, process_count=2, **options) for i in range(2)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 8
    for batch, *halves in zip(whole, *parts, strict=True):
        assert_equal(batch, {key: np.concatenate([half[key] for half in halves]) for key in batch})


def test_resume(source, tokenizer):
    pipeline = make_pipeline(source, replace(CONFIG, threads=2), tokenizer=tokenizer, seed=5, batch_size=4)
    iterator = iter(pipeline)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(2)]
    resumed = iter(make_pipeline(source, CONFIG, tokenizer=tokenizer, seed=5, batch_size=4))
    resumed.set_state(state)
    for batch in expected:
        assert_equal(batch, next(resumed))


def test_raw_crops_for_the_autoencoder(source):
    (batch,) = batches(source, replace(CONFIG, degrade=False, flip_probability=0.0), count=1, shuffle=False)
    assert batch.keys() == {"hr", "key", "index"}
    for i, crop in enumerate(round_to_uint8(batch["hr"] / 2 + 0.5)):
        windows = np.lib.stride_tricks.sliding_window_view(source[i].image, (32, 32, 3))
        assert (windows == crop).all((-3, -2, -1)).sum() == 1


def test_clean_inputs(source, tokenizer):
    found = examples(source, replace(CONFIG, clean_input_probability=0.1), tokenizer, 400)
    clean = [
        np.array_equal(e["lr"], e["hr"] / 2 + 0.5) or np.allclose(e["lr"], e["hr"] / 2 + 0.5, atol=1e-6) for e in found
    ]
    assert abs(np.mean(clean) - 0.1) < 3 * 0.015
    low = [tokenizer.read(e["low_ids"]) for e, c in zip(found, clean, strict=True) if c]
    assert not any("blur" in text or "poor" in text or "heavy" in text for text in low)
    assert all(text.startswith(("The ", "This ")) for text in low)


def test_dropout(source, tokenizer):
    config = replace(CONFIG, caption_dropout=0.2, high_dropout=0.3, low_dropout=0.4)
    found = examples(source, config, tokenizer, 400)
    high, low = (np.array([tokenizer.read(e[key]) == "" for e in found]) for key in ("high_ids", "low_ids"))
    for hits, probability in ((high, 1 - 0.8 * 0.7), (low, 1 - 0.8 * 0.6), (high & low, 0.2 + 0.8 * 0.3 * 0.4)):
        assert abs(hits.mean() - probability) < 3 * np.sqrt(probability * (1 - probability) / 400)
    assert (found[int(np.flatnonzero(high)[0])]["high_ids"] == [0] + [1] * 76).all()


def test_dropout_changes_nothing_else(source, tokenizer):
    plain, dropped = (examples(source, replace(CONFIG, caption_dropout=p), tokenizer, 5) for p in (0.0, 1.0))
    for a, b in zip(plain, dropped, strict=True):
        np.testing.assert_array_equal(a["hr"], b["hr"])
        np.testing.assert_array_equal(a["lr"], b["lr"])


def test_negative_targets(source, tokenizer):
    config = replace(
        CONFIG,
        negative_target_probability=0.25,
        negative_words=("blurry", "bad"),
        caption_dropout=0.5,
        clean_input_probability=0.5,
    )
    found = examples(source, config, tokenizer, 400, seed=1)
    captions = [tokenizer.read(e["high_ids"]) for e in found]
    negative = np.array(["bad" in caption for caption in captions])
    assert abs(negative.mean() - 0.25) < 3 * 0.022
    kinds = collections.Counter(caption for caption in captions if "bad" in caption)
    assert kinds.keys() == {"blurry, bad", "photo 0 blurry, bad"}
    assert abs(kinds["blurry, bad"] - negative.sum() / 2) < 3 * np.sqrt(negative.sum() / 4)
    for example in (e for e, n in zip(found, negative, strict=True) if n):
        np.testing.assert_allclose(example["hr"] / 2 + 0.5, example["lr"], atol=1e-6)  # the target stays degraded
        assert tokenizer.read(example["low_ids"])


@pytest.mark.parametrize(
    ("high_from", "hr", "lr", "expected"),
    [
        ("hr", "of hr", "of lr", "of hr"),
        ("hr", "", "of lr", "of lr"),
        ("lr", "of hr", "of lr", "of lr"),
        ("lr", "of hr", "", "of hr"),
        ("lr", "of hr", None, "of hr"),
    ],
)
def test_high_captions(source, tokenizer, high_from, hr, lr, expected):
    caption = None if lr is None else Caption(lr, "")
    sample = replace(source[0], caption=Caption(hr, ""), lr_caption=caption)
    example = make_example(sample, replace(CONFIG, high_caption_from=high_from), tokenizer=tokenizer, seed=0, index=0)
    assert tokenizer.read(example["high_ids"]) == expected


@pytest.mark.parametrize(
    ("clean", "lr", "expected"), [(0, "of lr", "of lr"), (0, "", "sharp file"), (1, "of lr", "sharp file")]
)
def test_low_captions_from_a_file(source, tokenizer, clean, lr, expected):
    sample = replace(source[0], lr_caption=Caption("", lr))
    config = replace(CONFIG, low_caption_from="file", clean_input_probability=float(clean))
    example = make_example(sample, config, tokenizer=tokenizer, seed=0, index=0)
    assert tokenizer.read(example["low_ids"]) == expected


def test_crops_cover_all_positions_and_half_of_them_are_flipped():
    image = np.zeros((40, 56, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(40)[:, None], np.arange(56)
    rng = np.random.default_rng(0)
    crops = [random_crop(image, CONFIG, rng) for _ in range(600)]
    assert {int(c[0, 0, 0]) for c in crops} == set(range(9))
    flipped = [c[0, 0, 1] > c[0, 1, 1] for c in crops]
    assert abs(np.mean(flipped) - 0.5) < 3 * 0.0205
    assert {int(min(c[0, 0, 1], c[0, -1, 1])) for c in crops} == set(range(25))
    assert all(c.shape == (32, 32, 3) and c.flags.c_contiguous for c in crops)


def test_small_photographs_are_padded_by_reflection():
    image = np.random.default_rng(0).integers(256, size=(20, 24, 3), dtype=np.uint8)
    config = replace(CONFIG, flip_probability=0.0)
    expected = np.pad(image, ((0, 12), (0, 8), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(random_crop(image, config, np.random.default_rng(0)), expected)
    tiny = image[:1, :2]
    assert random_crop(tiny, config, np.random.default_rng(0)).shape == (32, 32, 3)


def test_crop_scale_shows_more_of_the_photograph(photo):
    image, rng = round_to_uint8(photo), np.random.default_rng(0)
    config = replace(CONFIG, crop_scale=(0.05, 0.1), flip_probability=0.0)
    # The photograph is never reduced to less than the crop. So the crop is the whole photograph, averaged.
    np.testing.assert_array_equal(
        random_crop(image, config, rng), cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    )
    # Neighbouring pixels of a crop are 1 / scale pixels of the photograph apart.
    ramp = np.repeat(np.arange(250, dtype=np.uint8)[:, None, None], 250, axis=1).repeat(3, axis=2)
    config = replace(CONFIG, crop_scale=(0.25, 0.8))
    steps = [np.diff(random_crop(ramp, config, rng)[:, 0, 0].astype(float)).mean() for _ in range(300)]
    assert min(steps) == pytest.approx(1 / 0.8, abs=0.04) and max(steps) == pytest.approx(1 / 0.25, abs=0.1)
    assert np.mean(1 / np.array(steps)) == pytest.approx(0.525, abs=0.03)  # standard error 0.009


def test_tokens_equal_those_of_transformers():
    """Padding and cutting give the same ids as transformers, with the vocabulary in the package."""
    from transformers import CLIPTokenizer

    import xpsr_jax

    clip = CLIPTokenizer.from_pretrained(Path(xpsr_jax.__file__).parent / "assets" / "tokenizer")
    for text in ("", "A nuthatch clings head down.", "a small cat " * 40):
        expected = clip(text, padding="max_length", max_length=77, truncation=True)["input_ids"]
        assert tokenize_caption(text, clip).tolist() == expected


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"crop_size": 30}, {}, "crop size 30 must be a positive multiple of upscale=4"),
        ({}, {"batch_size": 3, "process_count": 2}, "batch size 3 must be a positive multiple of the 2 processes"),
        ({}, {"seed": -1}, "seed must be between"),
        ({"crop_scale": (0.5, 0.2)}, {}, "crop_scale must be"),
        ({"negative_target_probability": 0.1, "negative_words": ()}, {}, "negative_words is empty"),
        ({"workers": -1}, {}, "workers must be at least 0, not -1"),
        ({"threads": 0}, {}, "threads must be at least 1, not 0"),
        ({"prefetch": 0}, {}, "prefetch must be at least 1, not 0"),
        ({}, {"epochs": 1, "batch_size": 8}, "7 images, 1 times, do not fill one batch of 8"),
    ],
)
def test_wrong_settings(source, tokenizer, config, options, message):
    with pytest.raises(UserError, match=message):
        batches(source, replace(CONFIG, **config), tokenizer=tokenizer, count=1, **options)


def test_captions_need_a_tokenizer(source):
    with pytest.raises(ValueError, match="need a tokenizer"):
        batches(source, count=1)


def test_errors_of_the_source_are_raised(tokenizer):
    class Broken(Photos):
        def __getitem__(self, index):
            raise UserError("Cannot read the image x.png")

    with pytest.raises(UserError, match=r"x\.png"):
        batches(Broken(np.zeros((256, 256, 3), np.float32)), tokenizer=tokenizer, count=1)


def test_a_photograph_that_was_removed_is_named_or_replaced(photo, tmp_path, capfd):
    """The error is one line, although a thread reads the photograph."""
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), round_to_uint8(photo)[:40, 20 * i : 20 * i + 56])
    source, config = ImageFolder(tmp_path), replace(CONFIG, degrade=False)
    (tmp_path / "1.png").unlink()
    with (
        contextlib.closing(iter(make_pipeline(source, config, tokenizer=None, seed=5, batch_size=4))) as data,
        pytest.raises(UserError, match=r"1\.png cannot be read: No such file or directory") as caught,
    ):
        list(itertools.islice(data, 2))
    assert "\n" not in str(caught.value)
    with contextlib.closing(
        iter(make_pipeline(Skipping(source), config, tokenizer=None, seed=5, batch_size=4))
    ) as data:
        assert len(list(itertools.islice(data, 2))) == 2
    assert "1.png cannot be read: No such file or directory; the next image replaces it" in capfd.readouterr().err
