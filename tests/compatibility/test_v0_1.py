"""Files of version 0.1 are read, resumed, exported, used for restoring and evaluated, as version 0.1 would do.

The files include its own results. With the same compiler, version 0.1 reproduces them bit for bit. The tolerances are
for other compiled programs: with XLA's optimisations on, losses differ by 2e-7 and trained weights by 1.2e-7.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import xpsr_jax
from tests.compatibility.conftest import Command
from xpsr_jax.config import load_config
from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.data.examples import DataConfig
from xpsr_jax.data.pipeline import make_pipeline
from xpsr_jax.data.sample_sources import open_sample_source
from xpsr_jax.models.parameters import parameters
from xpsr_jax.weights.model_folder import load_tokenizer

PREPARE = ("--workers", 1, "--minimum-pixels", 1000)
NETWORKS = ("unet", "controlnet", "autoencoder", "text_encoder")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }


def tensors(model: Path) -> dict[str, np.ndarray]:
    """The tensors of all networks of a model folder."""
    return {
        f"{file.parent.name}/{key}": tensor
        for file in sorted(model.glob("*/*.safetensors"))
        for key, tensor in load_file(file).items()
    }


def is_within(old: Any, new: Any) -> bool:
    """Whether JSON contains all of the older JSON. New keys are allowed."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(name in new and is_within(each, new[name]) for name, each in old.items())
    return old == new


def pixels(file: Path) -> np.ndarray:
    return cv2.imread(str(file)).astype(int)


@pytest.mark.soak
def test_a_stopped_run_is_resumed_with_the_same_result(here: Path, command: Command):
    """runs/half was stopped at step 3 of 6, between two lines of its log. runs/whole was not stopped."""
    assert command("train.py", "--config", "config.py", "--distributed", "off", "--run", "runs/half") == 0
    said = (here / "runs/half/log.txt").read_text()
    assert "runs/half: step 3 of 6, 4 photographs" in said
    assert "changed since" not in said and "skipped" not in said
    logged, expected = lines(here / "runs/half/metrics.jsonl"), lines(here / "runs/whole/metrics.jsonl")
    assert [line["step"] for line in logged] == [line["step"] for line in expected] == [2, 4, 6]
    for ours, theirs in zip(logged, expected, strict=True):
        for name in theirs.keys() - {"images_per_second"}:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-6), name
    ours, theirs = tensors(here / "runs/half/model"), tensors(here / "runs/whole/model")
    assert ours.keys() == theirs.keys()
    for key in theirs:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=2e-6, err_msg=key)


@pytest.mark.parametrize(
    ("by", "run"), [("convert_weights.py", "whole"), ("convert_weights.py", "autoencoder"), ("train.py", "autoencoder")]
)
def test_a_finished_run_is_exported_again(by: str, run: str, as_made: Path, here: Path, command: Command):
    if by == "train.py":
        # The run is finished, so it is only exported.
        exported = here / "runs" / run / "model"
        shutil.rmtree(exported)
        assert command("train.py", "--config", f"config.py:{run}", "--distributed", "off", "--run", f"runs/{run}") == 0
    else:
        exported = here / "exported"
        assert command("convert_weights.py", f"runs/{run}", "--output", "exported") == 0
    expected = as_made / "runs" / run / "model"
    ours, theirs = tensors(exported), tensors(expected)
    assert ours.keys() == theirs.keys() and ours
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    for file in expected.rglob("*.json"):
        # The latents' scale is measured again. It is a sum over pictures, so it may be rounded differently.
        rewritten = json.loads((exported / file.relative_to(expected)).read_text())
        recorded = json.loads(file.read_text())
        for one in (rewritten, recorded):
            if "scaling_factor" in one:
                one["scaling_factor"] = pytest.approx(one["scaling_factor"], rel=1e-5)
        assert is_within(recorded, rewritten), file.name


@pytest.mark.more
def test_restoring_is_resumed_with_the_same_result(here: Path, command: Command, capsys: pytest.CaptureFixture[str]):
    arguments = ("validation/LR", "--model", "runs/whole/model", "--captions", "validation/LR/captions.jsonl")
    arguments += ("--distributed", "off", "--output")
    before = {file.name: file.stat().st_mtime_ns for file in (here / "restored_half").glob("*.png")}
    assert len(before) == 2
    assert command("sample.py", *arguments, "restored_half") == 0
    assert "2 of 4 images are already restored" in capsys.readouterr().out
    assert {name: (here / "restored_half" / name).stat().st_mtime_ns for name in before} == before
    for file in (here / "restored").glob("*.png"):
        assert np.abs(pixels(file) - pixels(here / "restored_half" / file.name)).max() <= 1, file.name
    recorded, now = lines(here / "restored/restored.jsonl"), lines(here / "restored_half/restored.jsonl")
    for old, new in zip(recorded, now, strict=True):
        assert is_within(old["settings"], new["settings"])
    assert command("sample.py", *arguments, "restored") == 0
    assert "4 of 4 images are already restored" in capsys.readouterr().out
    arguments = ("validation/LR/0_0.png", "--model", "runs/whole/model", "--missing-captions", "measured")
    assert command("sample.py", *arguments, "--distributed", "off", "--output", "restored_measured") == 0
    assert "1 of 1 images are already restored" in capsys.readouterr().out


def test_an_orbax_folder_holds_the_model(here: Path):
    converted, model = xpsr_jax.load("orbax"), xpsr_jax.load("runs/whole/model")
    assert (converted.note, converted.defaults) == (model.note, model.defaults)
    assert model.note == "Made by version 0.1." and model.defaults == load_config("config.py").sampling
    for name in NETWORKS:
        ours, theirs = (parameters(getattr(each, name)) for each in (converted, model))
        assert ours.keys() == theirs.keys()
        for path in theirs:  # converted with --dtype float16
            np.testing.assert_array_equal(ours[path], theirs[path].astype(jnp.float16), err_msg=path)


def test_records_hold_the_photographs(here: Path):
    photographs = open_sample_source(Path("photos"))
    captions = [Caption(f"Picture {i}, in colours.", "The picture is clear.") for i in range(4)]
    for stored in (photographs, open_sample_source(Path("records")), open_sample_source(Path("records_tfds"))):
        assert len(stored) == 4
        for i, caption in enumerate(captions):
            assert (stored[i].path, stored[i].caption) == (f"{i}.png", caption)
            np.testing.assert_array_equal(stored[i].image[..., ::-1], pixels(here / "photos" / f"{i}.png"))


def test_ready_made_pairs_are_read(here: Path):
    pairs = open_sample_source(Path("pairs"))
    assert len(pairs) == 4
    for i in range(4):
        folder = here / "pairs" / "dataset_0"
        np.testing.assert_array_equal(pairs[i].image[..., ::-1], pixels(folder / "HR" / f"{i}.png"))
        np.testing.assert_array_equal(pairs[i].lr[..., ::-1], pixels(folder / "LR" / f"{i}.png"))
        assert pairs[i].caption.high == f"Picture {i}, in colours." and pairs[i].lr_caption.low


@pytest.mark.parametrize(
    ("output", "arguments"),
    [
        ("records", ("records", "photos", "--images-per-file", 2, *PREPARE)),
        ("records_tfds", ("records", "photos", "--format", "tfds", *PREPARE)),
        ("pairs", ("pairs", "photos", "--crop-size", 32, "--rounds", 1, *PREPARE)),
        ("validation", ("validation", "photos", "--crop-size", 32, "--crops", 1, *PREPARE)),
        ("embeddings", ("embeddings", "photos", "--model", "base")),
    ],
)
def test_prepared_data_are_recognised_as_finished(
    output: str, arguments: tuple[object, ...], here: Path, command: Command
):
    before = contents(here)
    assert command("xpsr_jax.prepare_data", *arguments, "--output", output) == 0
    assert contents(here) == before


def test_unfinished_records_are_resumed(here: Path, command: Command):
    """One of two files was written, then a photograph was broken. Now the photograph is valid."""
    first = here / ".unfinished.partial" / "photographs-train.array_record-00000-of-00002"
    written = first.stat().st_mtime_ns
    arguments = ("records", "photos", "--output", "unfinished", "--images-per-file", 2, "--on-error", "stop", *PREPARE)
    assert command("xpsr_jax.prepare_data", *arguments) == 0
    assert (here / "unfinished" / first.name).stat().st_mtime_ns == written and not first.exists()
    assert not (here / ".unfinished.progress").exists()
    assert contents(here / "unfinished") == contents(here / "records")


def test_settings_added_later_have_their_defaults(here: Path, command: Command, capsys: pytest.CaptureFixture[str]):
    """Old files lack settings that were added later. Work can be resumed only with the defaults of these settings."""
    restored, prepared = here / "restored/restored.jsonl", here / "records/prepared.json"
    without(restored, '"tile_weights": "centred", ')
    without(prepared, '    "minimum_bytes": 0,\n')
    without(here / ".unfinished.progress/settings.json", '  "minimum_bytes": 0,\n')
    arguments = ("validation/LR", "--model", "runs/whole/model", "--captions", "validation/LR/captions.jsonl")
    assert command("sample.py", *arguments, "--distributed", "off", "--output", "restored") == 0
    assert "4 of 4 images are already restored" in capsys.readouterr().out
    records = ("records", "photos", "--images-per-file", 2, "--on-error", "stop", *PREPARE)
    for output in ("records", "unfinished"):
        assert command("xpsr_jax.prepare_data", *records, "--output", output, "--minimum-bytes", 1) == 1
        assert command("xpsr_jax.prepare_data", *records, "--output", output) == 0
    without(restored, '"tile_size": 96, ')
    assert command("sample.py", *arguments, "--distributed", "off", "--output", "restored", "--tile", 64) == 1
    assert "made with other settings (tile_size: was 96, is 64)" in capsys.readouterr().err


def without(file: Path, text: str) -> None:
    before = file.read_text()
    assert text in before
    file.write_text(before.replace(text, ""))


def test_captions_are_resumed(here: Path, command: Command):
    """A finished file is unchanged. A file with captions of two images gets those of the others."""
    finished, half = here / "captions_measured.jsonl", here / "captions_half.jsonl"
    before, begun = finished.read_bytes(), half.read_bytes()
    for file in (finished, half):
        assert command("xpsr_jax.caption", "measured", "photos", "--output", file.name, "--high", "A picture.") == 0
    assert finished.read_bytes() == before
    assert half.read_bytes().startswith(begun) and len(lines(half)) == 4
    assert {name: each.low for name, each in read_captions(half).items()} == {
        name: each.low for name, each in read_captions(finished).items()
    }
    assert lines(half)[2:] == lines(finished)[2:]


def test_captions_of_degraded_images_reach_training(here: Path):
    measured = read_captions(here / "lr_captions.jsonl")
    source = open_sample_source(Path("photos"), lr_captions=here / "lr_captions.jsonl")
    assert [source[i].lr_caption for i in range(4)] == [measured[f"{i}.png"] for i in range(4)]
    assert measured["0.png"].high == "Something blurry."


def test_text_embeddings_are_those_of_the_text_encoder(here: Path):
    tokenizer = load_tokenizer(here / "base/tokenizer")
    batches = {}
    for name, more in (("tokens", {}), ("embeddings", {"embeddings": Path("embeddings")})):
        data = DataConfig(crop_size=32, low_caption_from="file", **more)
        batches[name] = next(
            iter(make_pipeline(open_sample_source(Path("photos")), data, tokenizer=tokenizer, batch_size=4))
        )
    model = xpsr_jax.load("runs/whole/model")  # its text encoder is the base's
    encode = jax.jit(lambda ids: model.text_encoder(ids))
    for which in ("high", "low"):
        expected = encode(batches["tokens"][f"{which}_ids"])
        np.testing.assert_allclose(batches["embeddings"][f"{which}_embedding"], expected, rtol=0, atol=1e-5)


def test_scores_are_the_same_and_shown_with_those_of_others(
    here: Path, command: Command, capsys: pytest.CaptureFixture[str]
):
    (here / "others.json").write_text('{"SeeSR": {"psnr": 28.1, "ssim": 0.79}}')
    arguments = ("--restored", "restored", "--reference", "validation", "--metrics", "psnr", "ssim", "--set", "none")
    assert command("xpsr_jax.evaluate", *arguments, "--beside", "others.json", "--output", "again") == 0
    assert "SeeSR" in capsys.readouterr().out
    ours, theirs = (json.loads((here / name / "scores.json").read_text()) for name in ("again", "evaluation"))
    assert ours["images"].keys() == theirs["images"].keys() and len(theirs["images"]) == 4
    for recorded, now in [
        (theirs["mean"], ours["mean"]),
        *((each, ours["images"][name]) for name, each in theirs["images"].items()),
    ]:
        assert now == pytest.approx(recorded, rel=1e-6)
    ours, theirs = (json.loads((here / name / "manifest.json").read_text()) for name in ("again", "evaluation"))
    assert ours.keys() >= theirs.keys() and is_within(theirs["images"], ours["images"])
