"""A disk that is full while a checkpoint is written: the error is one clear line, and earlier checkpoints are whole."""

import resource

from tests.soak import runs

STEPS = 8
FIELDS = {"steps": STEPS, "checkpoint_every": 2}


def small_files() -> None:
    """Limits files to 64 KiB. The logs of the run fit into that, but a checkpoint does not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))


def test_a_full_disk_ends_the_run_and_harms_no_checkpoint(photos, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    runs.ended_well(runs.start(runs.command(whole, photos, **FIELDS)))
    runs.ended_well(runs.start(runs.command(run, photos, **FIELDS | {"steps": 4})))
    words = runs.command(run, photos, **FIELDS)
    ((code, out),) = runs.start(words, preexec_fn=small_files).wait()
    assert code == 1, out
    error = out.splitlines()[-1]  # earlier lines come from Orbax's thread
    print(error)
    assert error.startswith("error: ")
    assert f"a checkpoint cannot be written to {run}/checkpoints (" in error
    assert "The checkpoint of step 4 is complete; the same command resumes from there" in error
    assert sorted(path.name for path in (run / "checkpoints").iterdir() if path.name.isdecimal()) == ["2", "4"]

    runs.ended_well(runs.start(words))
    assert runs.metrics(run) == runs.metrics(whole)
    runs.assert_same_arrays(runs.checkpoint(run, STEPS), runs.checkpoint(whole, STEPS))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["6", "8"]
