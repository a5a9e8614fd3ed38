import dataclasses

import cv2
import numpy as np
import pytest

from benchmarks.tiny_quality import BICUBIC, OURS, markdown, variants
from xpsr_jax.config import PAPER
from xpsr_jax.data.captions import Caption, write_captions
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import METRICS, cut_crops, enlarge, measure_crops


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, shape in (("large.png", (70, 90)), ("small.png", (40, 90))):
        cv2.imwrite(str(folder / name), cv2.GaussianBlur(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), (0, 0), 2))
    write_captions(folder / "captions.jsonl", {"large.png": Caption("A", "B"), "small.png": Caption("C", "D")})
    return folder


@pytest.fixture(scope="module")
def crops(photos):
    return cut_crops(photos, ("large.png", "small.png"), count=2, size=64)


def test_crops_are_fixed_and_continued_by_reflection(photos, crops):
    assert [crop.name for crop in crops] == ["large.png", "large.png", "small.png", "small.png"]
    for crop in crops:
        assert crop.original.shape == (64, 64, 3)
        assert crop.lr.shape == (16, 16, 3)
        assert crop.lr.dtype == np.uint8
        assert crop.caption.high in "AC"
        assert len(crop.caption.low) > 20
    np.testing.assert_array_equal(crops[2].original[40:45], crops[2].original[34:39][::-1])
    [first, *_] = cut_crops(photos, ("large.png",), count=1, size=64)
    np.testing.assert_array_equal(first.original, crops[0].original)
    np.testing.assert_array_equal(first.lr, crops[0].lr)


def test_a_photograph_without_caption_is_named(photos):
    with pytest.raises(UserError, match=r"no caption for other\.png"):
        cut_crops(photos, ("other.png",), count=1, size=64)


def test_variants_leave_out_one_thing_each():
    of = variants(PAPER, [Caption("high", "low")])
    assert of[OURS] == (PAPER, [Caption("high", "low")])
    assert of["without high-level captions"] == (PAPER, [Caption("", "low")])
    assert of["without low-level captions"] == (PAPER, [Caption("high", "")])
    assert of["without negative prompt"][0] == dataclasses.replace(PAPER, negative_high="")


def test_originals_score_best(crops):
    originals = [crop.original for crop in crops]
    scores = measure_crops(crops, {BICUBIC: [enlarge(crop.lr, (64, 64)) for crop in crops], OURS: originals})
    assert scores[OURS]["SSIM-Y"] == [1.0] * 4
    for metric, better in METRICS.items():
        sign = 1 if better == "higher" else -1
        assert all(sign * a > sign * b for a, b in zip(scores[OURS][metric], scores[BICUBIC][metric], strict=True))


def test_table_has_means_standard_errors_and_ratios():
    scores = {
        BICUBIC: {"PSNR-Y": [20.0, 24.0], "LPIPS (alex)": [0.5, 0.7]},
        OURS: {"PSNR-Y": [21.0, 22.0], "LPIPS (alex)": [0.3, 0.3]},
    }
    _, _, bicubic, ours = markdown(scores).splitlines()
    assert bicubic == "| bicubic | 22.00 ± 2.00 | 0.6000 ± 0.1000 |"
    assert ours == "| ours | 21.50 ± 0.50 (-0.50 dB) | 0.3000 ± 0.0000 (0.500 ×) |"
