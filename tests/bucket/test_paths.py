"""Paths in buckets have pathlib's methods as far as possible, and never create a local folder."""

import dataclasses
import os
import pickle
import shutil
from pathlib import Path

import pytest

from xpsr_jax import files
from xpsr_jax.buckets import connection, lines, lock
from xpsr_jax.buckets.cache import INCOMPLETE, local_folder
from xpsr_jax.buckets.paths import BucketPath, as_path, refuse, with_paths
from xpsr_jax.config import Config
from xpsr_jax.errors import UserError
from xpsr_jax.json_files import read_json, write_json
from xpsr_jax.locks import locked_folder
from xpsr_jax.serialisation import from_json
from xpsr_jax.training.checkpoints import complete_steps


def test_a_path_survives_pathlib_json_and_pickle():
    path = as_path("gs://bucket/a/b.txt")
    assert isinstance(path, BucketPath) and str(path) == "gs://bucket/a/b.txt" and path.key == "bucket/a/b.txt"
    assert isinstance(path.parent / "c", BucketPath) and str(path.parent / "c") == "gs://bucket/a/c"
    assert as_path(Path("gs://bucket/a/b.txt")) == path and type(as_path(Path("gs://b/c"))) is BucketPath
    assert type(pickle.loads(pickle.dumps(path))) is BucketPath
    assert path.absolute() is path and path.resolve() is path and path.relative_to(path.parent) == Path("b.txt")
    assert type(as_path("a/b")) is type(Path("a/b"))
    config = with_paths(dataclasses.replace(Config(), run=Path("gs://bucket/run")))
    assert str(config.run_folder) == "gs://bucket/run" and isinstance(config.run_folder, BucketPath)
    assert config.images is with_paths(config).images
    read = from_json(Config, {"run": "gs://bucket/run", "networks": {"base": ["s3://b/c"]}}, "there")
    assert isinstance(read.run, BucketPath) and isinstance(read.networks.base[0], BucketPath)


def test_wrong_bucket_paths_are_one_line(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="gs:// names no bucket; write gs://BUCKET/NAME"):
        as_path("gs://")
    with pytest.raises(UserError, match="az:// is not supported; use a local path, gs:// or s3://"):
        as_path("az://bucket/a")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:").mkdir()
    assert as_path("odd:/a") == Path("odd:/a")
    monkeypatch.setitem(connection.PACKAGES, "gs", ("no_such_package",))
    with pytest.raises(UserError, match=r'gs:// needs an extra .*: pip install "xpsr-jax\[bucket\]"'):
        as_path("gs://bucket/a")
    with pytest.raises(UserError, match="--compare s3://b/c cannot be in a bucket; name a local path"):
        refuse(as_path("s3://b/c"), "--compare")


@pytest.mark.parametrize("act", [os.scandir, os.mkdir, shutil.rmtree, open, os.fspath])
def test_functions_for_local_paths_are_refused(act):
    with pytest.raises(UserError, match="gs://bucket/a: this is not supported in a bucket; name a local path"):
        act(as_path("gs://bucket/a"))


def test_files(bucket: BucketPath, tmp_path):
    file = bucket / "a" / "b.json"
    assert not file.exists() and not file.parent.is_dir()
    assert files.entries(file.parent) == set() and complete_steps(file.parent) == []
    with pytest.raises(FileNotFoundError):
        file.stat()
    with pytest.raises(UserError, match="cannot be read: there is no such file in the bucket"):
        read_json(file)
    write_json({"x": 1}, file)
    assert read_json(file) == {"x": 1} and file.is_file() and not file.is_dir() and file.parent.is_dir()
    assert file.stat().st_size == len(file.read_bytes()) and file.stat().st_mtime > 1.7e9
    write_json({"x": 2}, file)  # the next read must not come from a cache
    assert read_json(file) == {"x": 2}
    assert [str(path) for path in bucket.iterdir()] == [f"{bucket}/a"]
    assert files.entries(file.parent) == {"b.json"} and files.entries(file) == set()
    assert list(bucket.glob("a/*.json")) == [file] and list(bucket.rglob("*")) == [file]
    assert file.open(encoding="utf-8-sig").read().startswith("{") and file.open("rb").read(1) == b"{"
    with pytest.raises(UserError, match=r"has 11 bytes, more than the limit of 3|has \d+ bytes"):
        files.read_regular(file, max_bytes=3)
    with pytest.raises(RuntimeError), files.new_file(file) as made:
        made.write_text("half")
        raise RuntimeError
    assert read_json(file) == {"x": 2}
    moved = (bucket / "a").rename(bucket / "c")
    assert read_json(moved / "b.json") == {"x": 2} and not file.exists()
    moved.remove_tree()
    assert not moved.exists()
    assert file.create(b"first") and not file.create(b"second") and file.read_bytes() == b"first"
    file.unlink()
    file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        file.read_bytes()


def test_folders_appear_complete(bucket: BucketPath):
    folder = bucket / "model"
    with files.new_folder(folder) as made:
        (made / "sub").mkdir()
        (made / "sub" / "one").write_text("1")
        (made / "two").write_text("2")
        assert not folder.exists()
    assert sorted(folder.files()) == ["sub/one", "two"]
    with pytest.raises(UserError, match="already exists"):
        files.check_free(folder)
    with files.new_folder(folder, replaceable=frozenset({"sub", "two"})) as made:
        (made / "two").write_text("3")
    assert (local_folder(folder) / "two").read_text() == "3" and sorted(folder.files()) == ["two"]
    (folder / INCOMPLETE).write_bytes(b"")
    with pytest.raises(UserError, match=f"{folder} is incomplete: its upload is running or was stopped"):
        local_folder(bucket / "model", lambda name: True)


def test_write_access_can_be_checked_first(bucket: BucketPath):
    files.check_writable(bucket / "out")
    assert not bucket.files()
    with pytest.raises(UserError, match=r"no-such-bucket-9/out/\.probe.* cannot be written"):
        files.check_writable(as_path(f"{bucket.scheme}://no-such-bucket-9/out"))


def test_one_process_at_a_time(bucket: BucketPath, monkeypatch):
    folder = bucket / "run"
    with locked_folder(folder):
        with pytest.raises(UserError, match=f"{folder} is being written by another process"), locked_folder(folder):
            pass
        with pytest.raises(UserError, match="by another process"), locked_folder(folder, shared=True):
            pass
    assert not folder.files()
    with locked_folder(folder, shared=True), locked_folder(folder, shared=True):
        with pytest.raises(UserError, match="by another process"), locked_folder(folder):
            pass
        assert len(folder.files()) == 2
    assert not folder.files()
    # Locks of a killed process on this machine, and of one on another machine that was not renewed for long.
    for left in ({"pid": 2**22 + 1, "time": 1e12}, {"pid": 1, "host": "elsewhere", "time": 1e9}):
        write_json({"token": "x", "host": os.uname().nodename} | left, folder / ".lock")
        with locked_folder(folder):
            pass
    write_json({"token": "x", "host": "elsewhere", "pid": 1, "time": 1e12}, folder / ".lock")
    with pytest.raises(UserError, match="1 on elsewhere"), locked_folder(folder):
        pass
    assert lock.LEASE == 300


def test_lines_are_added_in_parts(bucket: BucketPath, monkeypatch):
    monkeypatch.setattr(lines, "_IN_A_PART", 2)
    file = bucket / "a.jsonl"
    one, other = lines.Lines(file), lines.Lines(file, every=1000)
    for n in range(3):
        one.append(b"%d\n" % n)
    other.append(b"late\n")
    assert lines.all_lines(file) == b"0\n1\n2\n" and len(lines.parts_of(file)) == 2
    other.flush()
    assert lines.all_lines(file) == b"0\n1\n2\nlate\n"
    file.write_bytes(lines.all_lines(file))  # as if stopped before the parts were removed
    assert lines.all_lines(file) == b"0\n1\n2\nlate\n"
    lines.write_whole(file, lines.all_lines(file))
    assert file.read_bytes() == b"0\n1\n2\nlate\n" and not lines.parts_of(file)
