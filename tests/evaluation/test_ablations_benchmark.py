import dataclasses
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.ablation_trainings import MODEL, UNET_WEIGHTS, VARIANTS, Arguments, configure, plain_diffusion
from benchmarks.ablations import TABLES, differences, markdown, plot, stored, verdict
from benchmarks.ablations import Arguments as Measuring
from benchmarks.beside_paper import Difference, beside_paper, direction
from benchmarks.bootstrap import interval, interval_of_mean
from xpsr_jax.config import load_config
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import METRICS, Crop, enlarge
from xpsr_jax.training.structure import make_structure


def scores(value):
    """Scores of 8 photographs with 8 crops each. All rows have the same noise of 0.01."""
    noise = np.random.default_rng(0).normal(scale=0.01, size=(8, 8))
    return dict.fromkeys(METRICS, value + noise)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    photos = tmp_path_factory.mktemp("photos")
    (photos / load_config("configs/tiny.py").images.exclude[0]).touch()  # a held-out photograph must exist
    return Arguments(photos=photos, output=tmp_path_factory.mktemp("study"))


def test_trainings_differ_only_in_the_variant(trainings):
    whole = configure(trainings, "default", 0)
    for variant in VARIANTS[1:]:
        config = configure(trainings, variant, 0)
        assert config.run_folder.name == f"{variant}-0"
        same = dict(name=whole.name, run=whole.run, networks=whole.networks, loss=whole.loss)
        assert (
            dataclasses.replace(config, **same) == whole != dataclasses.replace(config, name=whole.name, run=whole.run)
        )
    other = configure(trainings, "default", 1)
    assert dataclasses.replace(other, name=whole.name, run=whole.run, seed=0) == whole


def test_the_base_is_the_shipped_model_without_xpsrs_parts(trainings):
    base = plain_diffusion(trainings.output / "base")
    assert not (base / "controlnet").exists()
    shipped, kept = load_file(MODEL / UNET_WEIGHTS), load_file(base / UNET_WEIGHTS)
    assert (
        {key for key in shipped if key not in kept} == {key for key in shipped if ".pixel_attentions." in key} != set()
    )
    assert all(np.array_equal(shipped[key], array) for key, array in kept.items())
    structure = make_structure(configure(trainings, "default", 0))
    assert {path.split(".")[0] for path in structure.trained} == {"controlnet", "unet"}
    assert all(".pixel_attentions." in path for path in structure.trained if path.startswith("unet."))


def test_a_table_shows_where_it_agrees_with_the_paper():
    rows = {"all": [scores(0.5)], "less": [scores(0.4)], "same": [scores(0.5)]}
    rows["same"][0] = {name: values[:, ::-1] for name, values in rows["same"][0].items()}
    first, less, same = markdown("Table", rows, scores(0.3)).splitlines()[-3:]
    assert first.startswith("| all | 0.50 | 0.50")
    # All metrics are 0.1 lower. So fidelity is worse, which agrees with the paper, and distances are better.
    assert less.startswith("| less | -0.10 (-0.10 to -0.10) | -100.0 (") and less.endswith(" | ✓ ✓ ✗ ✗ |")
    assert same.endswith(" | = = = = |")


def test_seeds_are_averaged_crop_by_crop_and_shown():
    rows = {"all": [scores(0.5), scores(0.5)], "less": [scores(0.3), scores(0.5)]}
    assert differences(rows["less"], rows["all"], "DISTS").mean() == pytest.approx(-0.1)
    text = markdown("Table", rows, scores(0.3))
    # One seed alone does not decide.
    assert "-0.10 (-0.20 to +0.00) [-0.20; +0.00]" in text and text.endswith(" | = = = = |\n")


def test_intervals_consider_that_crops_of_a_photograph_are_similar():
    rng = np.random.default_rng(0)
    by_photo = np.repeat(rng.normal(size=(1, 8, 1)), 8, axis=2)
    low, high = interval_of_mean(by_photo)
    alone = interval(by_photo.ravel(), np.arange(64), np.mean)
    assert interval(by_photo.ravel(), np.repeat(np.arange(8), 8), np.mean) == pytest.approx((low, high), abs=0.1)
    assert low < by_photo.mean() < high
    assert high - low > 1.5 * (alone[1] - alone[0])


@pytest.mark.parametrize(("low", "high", "expected"), [(-2, -1, "✗"), (1, 2, "✓"), (-1, 1, "="), (0, 1, "=")], ids=str)
def test_verdicts_of_a_distance(low, high, expected):
    assert verdict(low, high, higher_is_better=False) == expected
    opposite = {"✓": "✗", "✗": "✓", "=": "="}[expected]
    assert verdict(low, high, higher_is_better=True) == opposite


@pytest.mark.more
def test_measured_rows_are_not_measured_again(tmp_path):
    original = cv2.resize(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8), (64, 64))
    crops = [Crop("a.png", original, cv2.resize(original, (16, 16)), Caption("", ""))]
    arguments = Measuring(photos=tmp_path, output=tmp_path, crops=1, size=64)
    (tmp_path / "scores").mkdir()
    first = stored(arguments, "a row", crops, ["a model"], lambda: [enlarge(crops[0].lr, (64, 64))])
    again = stored(arguments, "a row", crops, ["a model"], lambda: pytest.fail("restored again"))
    assert all(np.array_equal(first[metric], again[metric]) for metric in METRICS)
    for other, made_of in (
        (crops, ["trained anew"]),
        ([dataclasses.replace(crops[0], lr=255 - crops[0].lr)], ["a model"]),
    ):
        with pytest.raises(UserError, match="made with other crops, captions, settings or weights"):
            stored(arguments, "a row", other, made_of, list)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (Difference(-2, -3, -1), [-30.0, -5.0], "agrees"),
        (Difference(-2, -3, -1), [30.0], "disagrees"),
        (Difference(2, -1, 3), [30.0], "not significant, leans the same way"),
        (Difference(2, -1, 3), [-30.0, -1.0], "not significant, leans the other way"),
        (Difference(2, 1, 3), [-30.0, 1.0], "the paper's sets differ"),
    ],
)
def test_directions_are_compared_honestly(ours, theirs, said):
    assert direction(ours, theirs) == said


def test_the_document_compares_its_own_numbers_with_the_papers():
    """The last table follows from those before it and from the file that ships."""
    text = (Path(__file__).parents[2] / "docs" / "understand" / "study.md").read_text()
    study = {}
    for title in TABLES:
        table = text.partition(f"**{title}**")[2].partition("\n\n**")[0]
        study[title] = {}
        for line in table.splitlines():
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            numbers = [re.match(r"(\S+) \((\S+) to (\S+)\)", cell) for cell in cells[: len(METRICS)]]
            found = [Difference(*map(float, number.groups())) for number in numbers if number]
            if len(found) == len(METRICS):
                study[title][name] = dict(zip(METRICS, found, strict=True))
        assert [*study[title]] == [row.name for row in TABLES[title][1:]]
    assert beside_paper(study) in text


def test_plot(tmp_path):
    tables = {title: {row.name: [scores(0.5)] for row in rows} for title, rows in TABLES.items()}
    plot(tables, tmp_path / "ablations.png")
    assert cv2.imread(str(tmp_path / "ablations.png")).shape == (990, 1650, 3)
