"""The progress bar for a list of images."""

import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from xpsr_jax.cli.progress import ImagesBar
from xpsr_jax.data.captions import Caption
from xpsr_jax.inference.job import Progress, Task


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock in seconds, which tests set."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: now.seconds)
    monkeypatch.setattr("tqdm.std.time", lambda: now.seconds)
    monkeypatch.setenv("COLUMNS", "100")
    return now


def at(name: str, work: float) -> Progress:
    return Progress(0, 0, Task(Path(name), Path("out"), Caption(), name), 0, work)


def test_it_shows_the_current_image_and_the_remaining_time(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    bar = ImagesBar(3, quiet=False)
    bar.show(at("folder/a.png", 0))
    clock.seconds = 30
    bar.show(at("folder/a.png", 0.25))
    assert terminal.getvalue().endswith(" 25% |#####               | 1 of 3: a.png [00:30 elapsed, 01:30 left]")
    bar.count()
    clock.seconds = 60
    bar.show(at("folder/b\x1b.png", 0.5))
    assert terminal.getvalue().endswith(r" 50% |##########          | 2 of 3: b\x1b.png [01:00 elapsed, 01:00 left]")
    bar.count()
    assert bar.end(restored=2) == "; 01:00 in total, 30.0 s per image"


def test_without_a_terminal_it_shows_only_the_total_time(capsys, clock):
    bar = ImagesBar(2, quiet=False)
    bar.show(at("a.png", 0.5))
    clock.seconds = 3700
    assert bar.end(restored=1) == "; 1:01:40 in total, 3700.0 s per image"
    assert ImagesBar(2, quiet=True).end(restored=0) == ""
    assert capsys.readouterr().err == ""
