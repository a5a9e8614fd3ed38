"""Locks: a second process is refused at once, and the lock of a killed process is released."""

import os
import subprocess
import sys

import pytest

from xpsr_jax.errors import UserError
from xpsr_jax.locks import locked, locked_folder, locked_output


def test_a_second_process_is_refused_at_once(tmp_path):
    with locked_folder(tmp_path):
        with pytest.raises(UserError, match=rf"{tmp_path} is being written by another process \({os.getpid()} on "):
            locked_folder(tmp_path).__enter__()
        with pytest.raises(UserError), locked_folder(tmp_path, shared=True):
            pass
    with locked_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_processes_of_one_job_share_the_lock(tmp_path):
    first, second = (locked_folder(tmp_path, shared=True) for _ in range(2))
    with first, second, pytest.raises(UserError):
        locked_folder(tmp_path).__enter__()
    with locked_folder(tmp_path):
        pass


def test_an_output_that_does_not_exist_yet(tmp_path):
    output = tmp_path / "new" / ("b" * 255)
    with locked_output(output):
        assert not output.exists()
        with pytest.raises(UserError, match="is being written by another process"), locked_output(output):
            pass
    assert list(output.parent.iterdir()) == []


def test_a_killed_process_releases_its_lock(tmp_path):
    file = tmp_path / ".lock"
    code = f"""
from pathlib import Path
from xpsr_jax.locks import locked
with locked(Path({str(file)!r}), "it"):
    print("held", flush=True)
    input()
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=rf"\({child.pid} on "), locked(file, "it"):
        pass
    child.kill()
    child.communicate()
    assert file.exists()
    with locked(file, "it"):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "none" / ".lock", "it"):
        pass
