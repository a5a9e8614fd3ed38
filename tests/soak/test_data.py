"""Data from real worker processes: equal to data from threads, also after kills, and no process is left behind."""

import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from grain.checkpoint import CheckpointRestore, CheckpointSave
from PIL import Image

from xpsr_jax.config import Networks
from xpsr_jax.data.captions import Caption
from xpsr_jax.data.config import DataConfig
from xpsr_jax.data.image_folder import ImageFolder
from xpsr_jax.data.pipeline import Batches, make_pipeline
from xpsr_jax.errors import UserError
from xpsr_jax.training.export import tokenizer_of

ROOT = Path(__file__).parents[2]
CONFIG = DataConfig(crop_size=16, threads=1, prefetch=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(7):
        pixels = np.random.default_rng(i).integers(256, size=(24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def pipeline(folder: Path, workers: int) -> Batches:
    captions = {f"{i}.png": Caption(f"picture {i}", "") for i in range(7)}
    return make_pipeline(
        ImageFolder(folder, captions=captions),
        replace(CONFIG, workers=workers),
        tokenizer=tokenizer_of(Networks()),
        seed=3,
        batch_size=4,
    )


def assert_equal(found, expected) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_worker_processes_make_the_same_batches_and_are_resumed(folder, tmp_path):
    expected = list(itertools.islice(pipeline(folder, 0), 6))
    iterator = iter(pipeline(folder, 2))
    try:
        assert_equal([next(iterator) for _ in range(3)], expected[:3])
        assert len(multiprocessing.active_children()) == 2
        with ocp.CheckpointManager(tmp_path / "checkpoints", item_names=("data",)) as manager:
            manager.save(1, args=ocp.args.Composite(data=CheckpointSave(iterator)))
            manager.wait_until_finished()
            # Resume with threads, and with the same number of workers.
            resumed = iter(pipeline(folder, 0))
            manager.restore(1, args=ocp.args.Composite(data=CheckpointRestore(resumed)))
            assert_equal([next(resumed) for _ in range(3)], expected[3:])
            resumed.close()
            manager.restore(1, args=ocp.args.Composite(data=CheckpointRestore(iterator)))
            assert_equal([next(iterator) for _ in range(2)], expected[3:5])
    finally:
        iterator.close()
    assert not multiprocessing.active_children()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_errors_of_workers_reach_the_reader(folder, tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    iterator = iter(pipeline_of_broken(tmp_path))
    with pytest.raises(UserError, match=r"\.png: (damaged|not an image)"):
        next(iterator)
    iterator.close()


def pipeline_of_broken(folder: Path) -> Batches:
    return make_pipeline(
        ImageFolder(folder), replace(CONFIG, workers=1), tokenizer=tokenizer_of(Networks()), batch_size=1
    )


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """The child processes that any thread of the process has started."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


READER = """
import sys, time
from pathlib import Path
from tests.soak.test_data import pipeline
if __name__ == "__main__":
    iterator = iter(pipeline(Path(sys.argv[1]), 2))
    next(iterator)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_workers_end_with_their_parent(folder, tmp_path, number):
    script = tmp_path / "reader.py"
    script.write_text(READER)
    process = subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE, env=environment())
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        family = children(process.pid)
        assert len(family) >= 2  # and multiprocessing's own tracker
        process.send_signal(number)
        process.wait()
        wait_until(lambda: not any(map(alive, family)))
    finally:
        process.kill()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("command", ["records", "pairs"])
def test_prepare_data_killed_at_random_moments(folder, tmp_path, command):
    """A command that is killed and restarted several times writes the same files as an uninterrupted command."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(60):
        (photos / f"{i}.png").write_bytes((folder / f"{i % 7}.png").read_bytes())
    arguments = ["--missing-captions", "empty", "--minimum-pixels", "0", "--workers", "2"]
    arguments += {"records": ["--images-per-file", "2"], "pairs": ["--rounds", "12", "--crop-size", "16"]}[command]

    def start(output: str) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "xpsr_jax.prepare_data", command, photos, "--output", tmp_path / output]
        return subprocess.Popen([*map(str, line), *arguments], env=environment(), stderr=subprocess.DEVNULL)

    begin = time.monotonic()
    assert start("whole").wait() == 0
    seconds = time.monotonic() - begin
    rng, kills = np.random.default_rng(0), 0
    while True:
        process = start("killed")
        try:
            # The first two kills come before the end. Each later kill comes later, so that the command ends at last.
            code = process.wait(seconds * rng.uniform(0.3, 0.6 + 0.1 * max(0, kills - 1)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert code == 0
        if kills >= 2:
            break
        # The machine is faster than when it was measured, so try again with earlier kills.
        shutil.rmtree(tmp_path / "killed")
        seconds, kills = seconds / 2, 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
