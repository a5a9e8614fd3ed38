"""Files and folders that appear when they are complete: what a killed process left of one goes with the next."""

import os
import platform
import subprocess
import sys

import pytest

from xpsr_jax.errors import UserError
from xpsr_jax.weights.atomic import new_file, new_folder


@pytest.fixture(scope="module")
def dead():
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_processes_go(dead, tmp_path):
    node = platform.node()
    gone = [tmp_path / f".a.json.{node}-{dead}.partial", tmp_path / f".b.{node}-{dead}.partial"]
    kept = [tmp_path / f".a.json.{node}-{os.getppid()}.partial", tmp_path / f".a.json.other-{dead}.partial"]
    gone[1].mkdir()
    for file in (gone[0], gone[1] / "c", *kept):
        file.write_text("half")
    with new_file(tmp_path / "a.json") as temporary:
        temporary.write_text("whole")
    with new_folder(tmp_path / "b") as temporary:
        (temporary / "c").write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b", *(path.name for path in kept)}


def test_a_file_stays_as_it_was_after_an_error(tmp_path):
    (tmp_path / "a").write_text("before")
    with pytest.raises(UserError, match="a cannot be written: No space left"), new_file(tmp_path / "a") as temporary:
        temporary.write_text("after")
        raise OSError(28, "No space left on device")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
