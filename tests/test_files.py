"""Files and folders appear only when they are complete, and only regular files are read."""

import os
import shutil
import subprocess
import sys

import pytest

from xpsr_jax import files
from xpsr_jax.errors import UserError
from xpsr_jax.files import beside, check_writable, new_file, new_folder, open_regular, read_regular
from xpsr_jax.machine import cache_folder
from xpsr_jax.weights.hub import hub_name


@pytest.fixture(scope="module")
def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_processes_are_removed(dead, tmp_path):
    node = files._node()
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


@pytest.fixture(params=["of another process", "of a process with this one's id"])
def killed(request, dead):
    """The id of a killed process. In a container that is started again, the new process has the same id."""
    return dead if request.param == "of another process" else os.getpid()


def test_a_folder_is_put_back_if_a_process_was_killed_while_replacing_it(killed, tmp_path):
    folder, old = tmp_path / "model", tmp_path / f".model.{files._node()}-{killed}.old"
    partial = old.with_suffix(".partial")
    others = tmp_path / f".model2.{files._node()}-{killed}.old"
    for each in (old, partial, others):
        each.mkdir()
        (each / "unet").write_text("old")
    with pytest.raises(UserError, match="model already exists"), new_folder(folder):
        pass
    assert (folder / "unet").read_text() == "old" and others.is_dir() and not old.exists()
    # Killed a moment later, when the new folder already had its final name.
    shutil.copytree(folder, old)
    (folder / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes\.txt"), new_folder(folder, replaceable=frozenset({"unet"})):
        pass
    assert old.is_dir()  # nothing is removed before the new folder is complete
    (folder / "notes.txt").unlink()
    with new_folder(folder, replaceable=frozenset({"unet"})) as made:
        (made / "unet").write_text("new")
    assert (folder / "unet").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"model", others.name}


def test_a_model_is_found_that_a_killed_process_was_replacing(dead, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "models" / f".xpsr.{files._node()}-{dead}.old"
    old.mkdir(parents=True)
    assert hub_name("models/xpsr") is None and (tmp_path / "models" / "xpsr").is_dir()


def test_a_file_is_unchanged_after_an_error(tmp_path):
    (tmp_path / "a").write_text("before")
    with pytest.raises(UserError, match="a cannot be written: No space left"), new_file(tmp_path / "a") as temporary:
        temporary.write_text("after")
        raise OSError(28, "No space left on device")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("name", ["a", "b" * 255, "é" * 127, "c" * 143, os.fsdecode(b"\xff" * 255)])
def test_temporary_names_are_not_longer_than_the_result(name, tmp_path):
    with new_file(tmp_path / name) as temporary:
        assert len(os.fsencode(temporary.name)) <= max(143, len(os.fsencode(name)))
        temporary.write_text("whole")
    with new_folder(tmp_path / "folder" / name) as folder:
        (folder / "in").write_text("whole")
    assert (tmp_path / name).read_text() == (tmp_path / "folder" / name / "in").read_text() == "whole"


def test_shortened_names_remain_different(tmp_path):
    long = [tmp_path / ("b" * 254 + end) for end in "12"]
    assert beside(long[0], "lock") != beside(long[1], "lock")
    assert beside(long[0], "lock") == beside(long[0], "lock")
    assert beside(tmp_path / "short", "lock") == tmp_path / ".short.lock"


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "link"):
        assert read_regular(tmp_path / name, max_bytes=5) == b"12345"
    problems = {
        "pipe": "it is a pipe, not a file",
        "zero": "it is a device, not a file",
        "loop": "symbolic links",
        ".": "it is a folder, not a file",
        "nothing": "No such file",
        "nul\0": "not a valid file name",
        "half \ud800": "not a valid file name",
    }
    for name, problem in problems.items():
        with pytest.raises(UserError, match=problem):
            open_regular(tmp_path / name)


def test_no_more_than_the_limit_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(UserError, match="5 bytes, more than the limit of 4"):
        open_regular(tmp_path / "file", max_bytes=4)
    # The size of such system files is 0, although they have content.
    with pytest.raises(UserError, match="more bytes than the limit of 4"):
        read_regular(files.Path("/proc/self/status"), max_bytes=4)


def test_check_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into this folder"):
        check_writable(tmp_path / "file" / "sub")
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_cache_folder_is_optional(monkeypatch, tmp_path):
    monkeypatch.setenv("XPSR_JAX_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("XPSR_JAX_CACHE", "")
    assert cache_folder() is None
    monkeypatch.delenv("XPSR_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "xpsr_jax"

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(files.Path, "home", no_home)
    assert cache_folder() is None
