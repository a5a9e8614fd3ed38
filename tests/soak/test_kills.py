"""A run that is killed many times at random moments ends with exactly the same bits as an uninterrupted run.

Compared are parameters, AdamW's moments, averages, the position in the data, logged lines, the samples of each step,
and the exported model. The run is killed SOAK_KILLS / 3 times (SOAK_KILLS: 60). SOAK_SEED sets the moments. soak-long
also kills a few-step training, which has two alternating optimizers, a quarter as often. tests/hostile/test_kills.py
has the other commands.
"""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.worker import Running, Worker
from tests.marks import marked_long
from tests.soak import runs

KILLS = max(1, int(os.environ.get("SOAK_KILLS", "60")) // 3)
SEED = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(10**6)))
STEPS = 40
# A logged line covers several steps. Steps that are not logged yet are in the checkpoint.
FIELDS = {"steps": STEPS, "checkpoint_every": 2, "log_every": 3}


def started(run: Path, photos: Path, worker: Worker, variant: str) -> Running:
    _, _, *words = runs.command(run, photos, config=f"{runs.CONFIG}:{variant}", **FIELDS)
    return worker.start("tests.soak.recorded:main", words, cwd=runs.ROOT, seconds=600)


def ended_well(job: Running) -> None:
    ended = job.wait()
    assert ended.code == 0, ended


def samples(run: Path) -> dict[int, list[int]]:
    """The samples of each step. If a step was repeated, it must have seen the same samples each time."""
    found: dict[int, list[int]] = {}
    for line in (run / "samples.txt").read_text().splitlines():
        step, ids = json.loads(line)
        assert found.setdefault(step, ids) == ids
    return found


def result(run: Path):
    return runs.checkpoint(run, STEPS), runs.metrics(run), samples(run), runs.weights(run / "model")


def whole(run: Path, photos: Path, worker: Worker, variant: str):
    """The result of an uninterrupted run, and its seconds."""
    began = time.monotonic()
    ended_well(started(run, photos, worker, variant))
    seconds = time.monotonic() - began
    assert samples(run) == {step: list(range(8 * step - 8, 8 * step)) for step in range(1, STEPS + 1)}
    return result(run), seconds


def assert_same(run, expected):
    for one, other in zip(result(run), expected, strict=True):
        if isinstance(one, dict) and "state" in one:
            runs.assert_same_arrays(one["state"], other["state"])
            assert {name: one[name] for name in ("data", "log")} == {name: other[name] for name in ("data", "log")}
        else:
            assert one == other
    known = {
        "README.md",
        "checkpoints",
        "config.json",
        "log.txt",
        "losses.png",
        "metrics.jsonl",
        "model",
        "samples.txt",
    }
    assert {path.name for path in run.iterdir()} == known | {"tensorboard"}  # no incomplete file is left
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [STEPS - 2, STEPS]


def unfinished(run: Path) -> set[tuple[str, int]]:
    """Name and inode of checkpoints that are being written, or whose process died while writing them."""
    found = set()
    for path in run.glob("checkpoints/*.orbax-checkpoint-tmp*"):
        with contextlib.suppress(FileNotFoundError):  # it was finished meanwhile
            found.add((path.name, path.stat().st_ino))
    return found


def steps_made(run: Path) -> int:
    file = run / "samples.txt"
    return file.read_text().count("\n") if file.exists() else 0


def wait_for(job: Running, moment: Callable[[], bool]) -> bool:
    """Waits for the moment. Returns whether it came before the process ended."""
    while job.poll() is None:
        if moment():
            return True
        time.sleep(0.002)
    return False


def await_a_moment(job, run, rng, seconds) -> bool:
    """Waits for a random moment for a kill. Returns whether it came before the process ended."""
    began, left_over = time.monotonic(), unfinished(run)

    def saving() -> bool:
        return bool(unfinished(run) - left_over)

    match rng.choice(["a save", "a save", "a step", "any time"]):
        case "a save":  # during one of the first saves of this process, or just after its start
            for _ in range(rng.randrange(4)):
                if not (wait_for(job, saving) and wait_for(job, lambda: not saving())):
                    return False
            came = wait_for(job, saving)
            time.sleep(rng.choice([0, rng.uniform(0, 0.05)]))
            return came
        case "a step":
            steps = steps_made(run) + rng.randrange(1, 8)
            came = wait_for(job, lambda: steps_made(run) >= steps)
            time.sleep(rng.uniform(0, 0.3))
            return came
        case _:
            after = rng.uniform(0, seconds)
            return wait_for(job, lambda: time.monotonic() - began > after)


@pytest.mark.parametrize("variant", marked_long(["default", "few_step"], ["few_step"]))
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(photos, worker, tmp_path, variant):
    print(f"seed {SEED}")
    wanted = max(1, KILLS // 4) if variant == "few_step" else KILLS
    expected, seconds = whole(tmp_path / "whole", photos, worker, variant)
    rng, kills, in_a_save, finished = random.Random(SEED), 0, 0, 0
    run = tmp_path / "0"
    while kills < wanted:
        left_over, job = unfinished(run), started(run, photos, worker, variant)
        try:
            await_a_moment(job, run, rng, seconds)
        finally:
            ended = job.kill()
        if ended.code == -signal.SIGKILL:
            kills += 1
            in_a_save += bool(unfinished(run) - left_over)
            continue
        assert ended.code == 0, ended
        assert_same(run, expected)
        finished += 1
        run = tmp_path / str(finished)
    ended_well(started(run, photos, worker, variant))
    assert_same(run, expected)
    said = f"killed {kills} times, {in_a_save} of them during a save; {finished + 1} runs, all with the same result"
    print(f"{variant}, seed {SEED}: {said}")
    assert in_a_save >= wanted // 10
