"""Whole runs: stopped and resumed bit for bit, exported, and ended with one clear line if something is wrong."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import xpsr_jax
from tests.compilations import compilations
from tests.training import tiny
from xpsr_jax.config import Images, Validation
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.fidelity import psnr_y
from xpsr_jax.inference.restore import restore
from xpsr_jax.training import loop
from xpsr_jax.training.log import is_validation
from xpsr_jax.training.loop import locked_run, stop_signals, train
from xpsr_jax.training.parameters import load_parameters
from xpsr_jax.training.plan import make_plan
from xpsr_jax.training.state import learning_rate
from xpsr_jax.training.structure import make_structure

ROOT = Path(__file__).parents[2]
STEPS = 12
NETWORKS = ("unet", "controlnet", "vae", "text_encoder")


def config(images, run, **fields):
    return dataclasses.replace(tiny.config(), images=images, run=run, steps=STEPS, **{"checkpoint_every": 5} | fields)


def metrics(run):
    """The logged lines of steps, without the speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if not is_validation(line)]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in steps]


def scores(run):
    """The logged lines of validations."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if is_validation(line)]


def weights(model):
    """The bytes of every network's file."""
    return {file.relative_to(model): file.read_bytes() for name in NETWORKS for file in (model / name).iterdir()}


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The run folder of an uninterrupted training, and the programs that it compiled."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    validation = Validation(every=STEPS // 2, count=2, metrics=("psnr", "lpips"), sampling=tiny.config().sampling)
    with compilations() as compiled:
        assert train(config(images, run, validation=validation, profile=2)) == run / "model"
    return run, compiled


def test_a_run_leaves_the_documented_files(whole):
    run, _ = whole
    assert {path.name for path in run.iterdir()} == {
        "README.md",
        "config.json",
        "checkpoints",
        "log.txt",
        "losses.png",
        "metrics.jsonl",
        "model",
        "profile",
        "samples",
        "tensorboard",
    }
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [10, STEPS]  # 5 was not kept
    pictures = sorted((run / "samples").iterdir())
    names = [
        f"00000{s:02d}_validation_{i}{c}.png" for s in (STEPS // 2, STEPS) for i in (0, 1) for c in ("", "_constraint")
    ]
    assert [path.name for path in pictures] == names
    assert cv2.imread(str(pictures[0])).shape == (tiny.SIZE, 3 * tiny.SIZE, 3)
    # Two pixel heads, latent heads of one size, the mid block's head.
    assert cv2.imread(str(pictures[1])).shape == (tiny.SIZE, 4 * tiny.SIZE, 3)
    assert cv2.imread(str(run / "losses.png")).std() > 1
    assert list((run / "profile").rglob("*.xplane.pb"))
    said = (run / "log.txt").read_text().splitlines()
    assert len(said) == 1 + STEPS + 3 and f"trace of steps 3 to 4 in {run / 'profile'}" in said[4]
    last = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d 12: .*loss \S+.*, mse \S+; \S+ images/s, 0:00:00 to go"
    assert re.fullmatch(last, said[-2]), said[-2]
    record = json.loads((run / "config.json").read_text())
    assert (record["steps"], record["photographs"], record["data"]["crop_size"]) == (STEPS, 5, tiny.SIZE)


def test_validations_are_measured(whole):
    """On the pictures that are saved: LR, restored, original side by side."""
    run, _ = whole
    lines = scores(run)
    assert [line["step"] for line in lines] == [STEPS // 2, STEPS]
    for line in lines:
        rows = [cv2.imread(str(run / "samples" / f"{line['step']:07d}_validation_{i}.png"))[..., ::-1] for i in (0, 1)]
        expected = np.mean([psnr_y(*np.split(row, 3, axis=1)[1:]) for row in rows])
        assert line["validation_psnr"] == pytest.approx(expected, abs=2e-5)  # measured 1e-5
        assert 0 < line["validation_lpips"] < 2
    assert f"{STEPS}: validation psnr {lines[-1]['validation_psnr']:.4g}, lpips" in (run / "log.txt").read_text()


def test_the_learning_rate_is_logged(whole):
    """The value that the optimizer uses in each step, including the warmup."""
    run, _ = whole
    settings = tiny.config().optimizer
    rates = [line["learning_rate"] for line in metrics(run)]
    assert rates == [float(learning_rate(settings, STEPS)(step)) for step in range(STEPS)]


def test_each_step_of_training_and_of_its_two_validations_is_compiled_once(whole):
    _, compiled = whole
    programs = ("step", "prepare_texts", "prepare_pictures", "run_steps", "finish", "_predict_constraint")
    assert {name: compiled.count(name) for name in programs} == dict.fromkeys(programs, 1)


def test_the_exported_model_restores(whole):
    run, _ = whole
    model = xpsr_jax.load(run / "model")
    assert model.note == "It is a test's." and model.defaults == tiny.config().sampling
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    (restored,) = restore(model, [image], [Caption("a picture", "blurry")])
    assert restored.shape == (64, 64, 3) and restored.std() > 1


def test_another_run_can_start_from_the_exported_model(whole):
    run, _ = whole
    networks = dataclasses.replace(tiny.NETWORKS, base=(run / "model",), from_scratch=())
    structure = make_structure(dataclasses.replace(tiny.config(), networks=networks))
    assert set(structure.sources) == {"unet", "controlnet", "autoencoder", "text_encoder"}
    parameters = load_parameters(structure, structure.trained)
    saved = ocp.StandardCheckpointer().restore(run / "checkpoints" / str(STEPS) / "state")
    assert parameters.keys() == saved["average"].keys()
    for path, average in saved["average"].items():
        np.testing.assert_array_equal(parameters[path], average)


@pytest.mark.soak
def test_a_run_stopped_by_a_signal_and_resumed_ends_bit_for_bit_the_same(whole, images, tmp_path):
    run = tmp_path / "stopped"
    fields = {"--images.folder": images.folder, "--run": run, "--steps": STEPS, "--checkpoint-every": 5}
    command = [sys.executable, "train.py", "--config", "tests/training/tiny.py"]
    command += [str(word) for field in fields.items() for word in field]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = run / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 130, err
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    assert 2 <= steps[-1] < STEPS
    assert f"stopped at step {steps[-1]}; the same command resumes from there" in out
    assert not (run / "model").exists()

    assert train(config(images, run)) == run / "model"
    expected, _ = whole
    assert metrics(run) == metrics(expected)
    assert weights(run / "model") == weights(expected / "model")
    final = [folder / "checkpoints" / str(STEPS) / "state" for folder in (run, expected)]
    final = [ocp.StandardCheckpointer().restore(folder) for folder in final]
    assert len(jax.tree.leaves(final[0])) > 4 * 40  # parameters, two moments, averages
    jax.tree.map(np.testing.assert_array_equal, *final)


def test_a_run_does_not_resume_with_other_settings(whole, images):
    run, _ = whole
    with pytest.raises(UserError, match=r"cannot resume with other settings \(seed: was 0, is 1\)"):
        train(config(images, run, seed=1))
    assert json.loads((run / "config.json").read_text())["seed"] == 0


def pretended(bad_step, term):
    """Replaces `make_plan`: its step does nothing, and one of its terms is NaN once."""

    def step(state, frozen, constants, batch):
        number = int(state.step) + 1
        terms = {"loss": np.float32(1), "gradient_norm": np.float32(1)}
        if number < 0:  # it has failed
            return state, terms
        if number == bad_step:
            return dataclasses.replace(state, step=~state.step), terms | {term: np.float32("nan")}
        return dataclasses.replace(state, step=state.step + 1), terms

    return lambda config, mesh: dataclasses.replace(make_plan(config, mesh), step=step)


@pytest.mark.soak
@pytest.mark.parametrize("term", ["loss", "gradient_norm"])
def test_nan_ends_the_run_and_is_not_saved(term, images, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(loop, "make_plan", pretended(4, term))
    message = (
        rf"the {term} became nan at step 4 \(samples 24, 25, .* 31\)\. .*failed/3 is a checkpoint of the state before"
    )
    with pytest.raises(UserError, match=message):
        train(config(images, run, log_every=100, checkpoint_every=2))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2"]
    assert not (run / "model").exists()

    # The bad step can be repeated from the saved checkpoint, with the same batch.
    again = tmp_path / "again"
    shutil.copytree(run / "failed", again / "checkpoints")
    with pytest.raises(UserError, match=message):
        train(config(images, again, log_every=100, checkpoint_every=2))
    assert not (again / "checkpoints" / "2").exists()
    # The run itself resumes from its last checkpoint, and a later failure replaces the first one.
    monkeypatch.setattr(loop, "make_plan", pretended(7, term))
    with pytest.raises(UserError, match=r"at step 7 \(samples 48, 49, .*failed/6 is"):
        train(config(images, run, log_every=100, checkpoint_every=2))
    assert [path.name for path in (run / "failed").iterdir()] == ["6"]


@pytest.mark.soak
def test_steps_after_the_last_checkpoint_are_logged_once(images, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(loop, "make_plan", pretended(8, "loss"))
    with pytest.raises(UserError, match="at step 8"):
        train(config(images, run))
    assert [line["step"] for line in metrics(run)] == list(range(1, 8))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a process that was killed
    monkeypatch.setattr(loop, "make_plan", pretended(None, ""))
    for _ in range(2):  # the second time only the model is exported again
        assert train(config(images, run)) == run / "model"
        assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))


SETTINGS = tiny.config()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": Images(folder=Path("nothing"))}, "There is no image folder nothing"),
        ({"batch_size": 12}, "batch_size=12 must be a multiple of 8: 8 devices x accumulation=1"),
        ({"accumulation": 2}, "batch_size=8 must be a multiple of 16: 8 devices x accumulation=2"),
        ({"mesh": dataclasses.replace(SETTINGS.mesh, data=3)}, "do not fit 8 devices"),
        ({"trained": ((r"unet\.konv\..*", True),)}, "konv.* matches no parameter"),
        ({"optimizer": dataclasses.replace(SETTINGS.optimizer, decayed=(("x", True),))}, "'x' matches no parameter"),
        (
            {"networks": dataclasses.replace(SETTINGS.networks, from_scratch=())},
            "base model has no unet/.*--networks.base",
        ),
    ],
)
def test_wrong_settings_are_reported_before_anything_is_written(fields, message, images, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(config(images, run), **fields))
    assert not run.exists()


def test_wrong_folders_are_reported_before_anything_is_written(images, tmp_path):
    run = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"/empty: no image in this folder"):
        train(config(Images(folder=tmp_path / "empty"), run))
    uncaptioned = tiny.make_photos(tmp_path / "uncaptioned").folder
    (uncaptioned / "captions.jsonl").write_text('{"image": "0.png", "high": "a", "low": "b"}\n')
    with pytest.raises(UserError, match=r"No caption in .*captions.jsonl for '1.png' \(and 3 more\)"):
        train(config(Images(folder=uncaptioned), run))
    assert not run.exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run: cannot write into this folder: Not a directory"):
        train(config(images, tmp_path / "file" / "run"))


def test_the_second_signal_acts_immediately():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may have been started with another one
    try:
        with stop_signals() as stopped:
            assert not stopped(1)
            os.kill(os.getpid(), signal.SIGINT)
            assert stopped(2)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopped(3)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_training_in_a_folder_is_refused(tmp_path):
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    with locked_run(tmp_path), pytest.raises(UserError, match=f"{tmp_path} is being written by another process"):
        locked_run(tmp_path).__enter__()
    with locked_run(tmp_path):
        pass
    assert (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").is_dir()
