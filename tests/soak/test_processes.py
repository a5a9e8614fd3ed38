"""Two processes with four devices each: they train, save, validate, stop, resume and export together."""

import os
import signal
import time

import cv2
import numpy as np
import pytest

from tests.soak import runs

STEPS = 6
# Small parameters are split too. Otherwise nothing of this small network would be split.
FIELDS = {"steps": STEPS, "checkpoint_every": 2, "mesh__data": 2, "mesh__fsdp": 4, "mesh__replicated_bytes": 0}


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """An uninterrupted run in two processes, and the output of each."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    words = runs.command(run, photos, validation__every=3, **FIELDS)
    return run, runs.ended_well(runs.start(words, processes=2, devices=4))


def said(out):
    """The lines of an output without those of JAX and the progress bar."""
    return [line for line in out.splitlines() if line.strip() and "[Gloo]" not in line and "it/s]" not in line]


def test_only_the_first_process_prints_and_writes(whole):
    run, (first, second) = whole
    assert f"{run}: step 0 of {STEPS}, 5 photographs, 8 devices of 2 processes" in first
    assert f"model: {run / 'model'}" in first
    assert said(second) == []
    assert len(runs.metrics(run)) == STEPS
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_the_result_equals_that_of_one_process_with_all_devices(whole, photos, tmp_path):
    run, _ = whole
    one = tmp_path / "one"
    runs.ended_well(runs.start(runs.command(one, photos, validation__every=3, **FIELDS), devices=8))
    difference = runs.largest_difference(runs.metrics(run), runs.metrics(one))
    print(f"largest relative difference of any term: {difference:.1e}")
    assert difference < 1e-5  # measured 1.2e-7
    pictures = sorted((one / "samples").iterdir())
    assert len(pictures) == 4
    for picture in pictures:
        ours, theirs = (cv2.imread(str(file)).astype(int) for file in (run / "samples" / picture.name, picture))
        assert np.abs(ours - theirs).max() <= 1
    ours, theirs = (runs.parameters(each / "model") for each in (run, one))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=2e-5, err_msg=name)


def test_a_signal_to_one_process_stops_both_and_the_resumed_run_is_exact(whole, photos, tmp_path):
    """If the newest checkpoint is damaged, both resume from the checkpoint before it."""
    expected, _ = whole
    run = tmp_path / "stopped"
    words = runs.command(run, photos, validation__every=3, **FIELDS)
    job = runs.start(words, processes=2, devices=4)
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert all(process.poll() is None for process in job.processes)
        time.sleep(0.01)
    job.processes[1].send_signal(signal.SIGTERM)
    ends = job.wait()
    assert [code for code, _ in ends] == [130, 130], ends
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    assert 2 <= steps[-1] < STEPS and f"stopped at step {steps[-1]}" in ends[0][1]

    for file in (run / "checkpoints" / str(steps[-1]) / "state").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    first, _ = runs.ended_well(runs.start(words, processes=2, devices=4))
    assert f"skipped: the checkpoint {run}/checkpoints/{steps[-1]} cannot be restored" in first
    assert f"step {steps[-2]} of {STEPS}" in first and (run / "damaged" / str(steps[-1])).is_dir()
    assert runs.metrics(run) == runs.metrics(expected)
    runs.assert_same_arrays(runs.checkpoint(run, STEPS), runs.checkpoint(expected, STEPS))
    assert runs.weights(run / "model") == runs.weights(expected / "model")


def test_one_process_resumes_from_two_and_two_from_one(whole, photos, tmp_path):
    """Two that are told of each other, one, and two that SLURM started."""
    expected, _ = whole
    run = tmp_path / "run"
    runs.ended_well(runs.start(runs.command(run, photos, **FIELDS | {"steps": 2}), processes=2, devices=4))
    runs.ended_well(runs.start(runs.command(run, photos, **FIELDS | {"steps": 4}), devices=8))
    runs.ended_well(runs.start(runs.command(run, photos, **FIELDS), processes=2, devices=4, slurm=True))
    assert runs.largest_difference(runs.metrics(run), runs.metrics(expected)) < 1e-5


def test_a_nan_loss_ends_both_and_saves_the_state_before_it(photos, tmp_path):
    run = tmp_path / "run"
    runs.ended_well(runs.start(runs.command(run, photos, **FIELDS | {"steps": 2}), processes=2, devices=4))
    words = runs.command(run, photos, **FIELDS, optimizer__learning_rate=1e38)
    ends = runs.start(words, processes=2, devices=4).wait()
    assert [code for code, _ in ends] == [1, 1], ends
    (error,) = [line for line in ends[0][1].splitlines() if line.startswith("error: ")]
    # Step 3 changes the trained parameters so much that step 4 fails. Its batch has samples of both processes.
    samples = ", ".join(map(str, range(24, 32)))
    assert f"at step 4 (samples {samples}). {run}/failed/3 is a checkpoint of the state before that step" in error
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2"]
    saved = runs.checkpoint(tmp_path / "run", 2)["state"], runs.checkpoint(run, 3, folder="failed")["state"]
    assert [int(state["step"]) for state in saved] == [2, 3]
    leaves = [np.abs(array).max() for array in saved[1]["trained"].values()]
    assert np.isfinite(leaves).all() and max(leaves) > 1e30


def test_a_missing_process_is_reported(photos, tmp_path):
    words = [*runs.command(tmp_path / "run", photos), "--distributed", "on"]
    ((code, out),) = runs.start(words).wait()
    assert code == 1 and "the processes cannot be joined" in out and "--coordinator HOST:PORT" in out
    assert not (tmp_path / "run").exists()
