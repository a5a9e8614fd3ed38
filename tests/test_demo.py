"""The demo, with networks of a few channels instead of the shipped model."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.inference.tiny_model import tiny_model
from xpsr_jax.cli import demo
from xpsr_jax.cli.demo import main
from xpsr_jax.images.reading import read_image
from xpsr_jax.inference.compare import side_by_side
from xpsr_jax.weights.model_folder import save

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_it_writes_both_pictures_and_prints_their_paths(tmp_path, monkeypatch, capsys) -> None:
    photo, shipped = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), tmp_path / "assets"
    (shipped / "demo").mkdir(parents=True)
    Image.fromarray(photo).save(shipped / "demo" / "original.png")
    Image.fromarray(photo[::4, ::4]).save(shipped / "demo" / "lr.png")
    caption = json.dumps({"image": "lr.png", "high": "a house", "low": "blurry"})
    (shipped / "demo" / "captions.jsonl").write_text(caption)
    save(tiny_model(), shipped / "tiny")
    monkeypatch.setattr(demo, "DEMO", shipped / "demo")
    monkeypatch.setattr(demo, "TINY_MODEL", shipped / "tiny")

    assert main([str(tmp_path / "out")]) == 0
    restored, comparison = (read_image(tmp_path / "out" / name) for name in ("restored.png", "comparison.png"))
    assert restored.shape == photo.shape
    np.testing.assert_array_equal(comparison[-32:, 40:72], restored)
    np.testing.assert_array_equal(comparison[-32:, 80:], photo)
    said = capsys.readouterr().out
    assert "It is a test's." in said  # the model's note
    assert all(str(tmp_path / "out" / name) in said for name in ("restored.png", "comparison.png"))


def test_missing_files_are_one_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(demo, "DEMO", tmp_path)
    assert main([str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_pictures_are_side_by_side_below_their_labels() -> None:
    red = np.full((40, 200, 3), (255, 0, 0), np.uint8)
    blue = np.full((40, 100, 3), (0, 0, 255), np.uint8)
    picture = side_by_side({"before": red, "after": blue})
    header = picture.shape[0] - 40
    np.testing.assert_array_equal(picture[header:, :200], red)
    np.testing.assert_array_equal(picture[header:, -100:], blue)
    assert (picture[header:, 200:-100] == 255).all() and picture.shape[1] > 300
    for label in (picture[:header, :200], picture[:header, -100:]):
        assert label.min() < 100 < label.mean()  # dark letters on white


def test_wrong_arguments_show_the_usage(capsys) -> None:
    for words, code in (["--steps", "3"], 2), (["--help"], 0):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == code
    assert capsys.readouterr().out.startswith("usage: xpsr demo ")
