"""The table of benchmarks/tiny_quality.py, and its crops."""

import dataclasses

import cv2
import jax
import numpy as np
import pytest

from benchmarks.tiny_quality import (
    BICUBIC,
    FIRST_STAGE,
    OURS,
    WITHOUT,
    Row,
    differences,
    markdown,
    restore_rows,
    rows,
)
from tests.inference.tiny_model import SAMPLING, tiny_model
from xpsr_jax.config import PAPER
from xpsr_jax.data.captions import Caption, write_captions
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import METRICS, cut_crops, enlarge, halves, held_out, measure_crops
from xpsr_jax.inference.restore import restore
from xpsr_jax.models.first_stage_config import RRDBNetConfig
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.weights.networks import Keys


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


def test_crops_are_fixed_and_padded_by_reflection(photos, crops):
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
    with pytest.raises(UserError, match=r"captions\.jsonl: there is no caption for other\.png"):
        cut_crops(photos, ("other.png",), count=1, size=64)


def test_each_row_changes_one_thing():
    captions = [Caption("high", "low")]
    of = rows(PAPER, captions, first_stage=True, steps=(1, 50), guidance_scales=(0.0, 5.5))
    own = of.pop(OURS)
    assert own == Row(PAPER, captions, first_stage=True)
    assert of == {
        WITHOUT: dataclasses.replace(own, first_stage=False),
        "without captions": dataclasses.replace(own, captions=[Caption()]),
        "without high-level captions": dataclasses.replace(own, captions=[Caption("", "low")]),
        "without low-level captions": dataclasses.replace(own, captions=[Caption("high", "")]),
        "guidance 5.5, without negative prompt": Row(dataclasses.replace(PAPER, negative_high=""), captions),
        "guidance 0": Row(dataclasses.replace(PAPER, guidance_scale=0.0), captions),
        "1 step": Row(dataclasses.replace(PAPER, steps=1), captions),
    }
    late = dataclasses.replace(PAPER, steps=10, strength=0.1)
    of_late = rows(late, captions, first_stage=False, steps=(1, 2))
    assert "1 step" not in of_late and of_late["2 steps"].sampling == dataclasses.replace(late, steps=20)
    unguided = dataclasses.replace(PAPER, guidance_scale=0.0)
    of = rows(unguided, captions, first_stage=False, guidance_scales=(0.0, 0.5))
    assert of["guidance 0.5, without negative prompt"].sampling == dataclasses.replace(
        unguided, guidance_scale=0.5, negative_high=""
    )
    assert WITHOUT not in of and "guidance 0" not in of


@pytest.mark.soak
@pytest.mark.usefixtures("compiled_quickly")
def test_a_table_for_a_model_with_a_first_stage(crops):
    """The first stage runs once. Rows from its results equal the model's own results."""
    network = RRDBNet(RRDBNetConfig(features=2, blocks=1, growth=2), rngs=Keys(jax.random.key(0)))
    model = dataclasses.replace(tiny_model(), first_stage=network)
    model = dataclasses.replace(model, defaults=dataclasses.replace(SAMPLING, steps=2, process_size=64))
    wanted = rows(model.defaults, [crop.caption for crop in crops[:2]], first_stage=True)
    results = restore_rows(model, crops[:2], {name: wanted[name] for name in (OURS, WITHOUT)})
    assert list(results.images) == list(results.seconds) == [BICUBIC, FIRST_STAGE, OURS, WITHOUT]
    assert results.seconds[OURS] > results.seconds[FIRST_STAGE] > 0
    (expected,) = restore(model, [crops[1].lr], [crops[1].caption])
    np.testing.assert_array_equal(results.images[OURS][1], expected)
    (alone,) = restore(model, [crops[1].lr], [Caption()], dataclasses.replace(model.defaults, steps=0))
    np.testing.assert_array_equal(results.images[FIRST_STAGE][1], alone)
    (plain,) = restore(dataclasses.replace(model, first_stage=None), [crops[1].lr], [crops[1].caption])
    np.testing.assert_array_equal(results.images[WITHOUT][1], plain)


@pytest.mark.more
def test_originals_score_best(crops):
    originals = [crop.original for crop in crops]
    scores = measure_crops(crops, {BICUBIC: [enlarge(crop.lr, (64, 64)) for crop in crops], OURS: originals})
    assert scores[OURS]["SSIM-Y"] == [1.0] * 4
    for metric, better in METRICS.items():
        sign = 1 if better == "higher" else -1
        assert all(sign * a > sign * b for a, b in zip(scores[OURS][metric], scores[BICUBIC][metric], strict=True))


def test_tables_have_means_standard_errors_over_photographs_and_ratios():
    """Two crops of one photograph count as one number: their mean."""
    scores = {
        BICUBIC: {"PSNR-Y": [19.0, 21.0, 24.0], "LPIPS (alex)": [0.4, 0.6, 0.7]},
        FIRST_STAGE: {"PSNR-Y": [21.0, 21.0, 21.0], "LPIPS (alex)": [0.2, 0.2, 0.4]},
        OURS: {"PSNR-Y": [20.0, 22.0, 22.0], "LPIPS (alex)": [0.1, 0.1, 0.2]},
    }
    photographs = ["a", "a", "b"]
    _, _, bicubic, _, ours = markdown(scores, photographs).splitlines()
    assert bicubic == "| bicubic | 22.00 ± 2.00 | 0.6000 ± 0.1000 |"
    assert ours == "| ours | 21.50 ± 0.50 (-0.50 dB) | 0.1500 ± 0.0500 (0.250 ×) |"
    *_, ours = differences(scores, photographs).splitlines()
    assert ours == "| ours | +0.50 ± 0.5000 | -0.1500 ± 0.0500 (0.500 ×) |"


def test_every_second_photograph_is_in_the_half_to_report(tmp_path, photos):
    names = ("large.png", "gone.png", "small.png")
    assert held_out(names, tmp_path, photos) == ("large.png", "small.png")
    assert halves(("a", "b", "c")) == {"choose": ("a", "c"), "report": ("b",)}
    with pytest.raises(UserError, match="has none of the held-out photographs"):
        held_out(names, tmp_path)
    (tmp_path / "captions.jsonl").write_text("")
    assert [crop.name for crop in cut_crops((tmp_path, photos), ("small.png",), count=1, size=64)] == ["small.png"]
