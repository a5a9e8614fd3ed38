"""Local copies of what is in buckets, in a folder of bounded size: what was not used for longest goes first.

The folder is `buckets` in `machine.cache_folder`, or, without one, a temporary folder of this process. It has a folder
for each copy, named after the path and the version that the bucket gives each file: what changes is another copy. The
lock of a copy, `NAME.lock`, is shared by who uses it; what nobody uses can go.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xpsr_jax.buckets.connection import explained, tried
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.errors import UserError, say
from xpsr_jax.machine import cache_folder

_SIZE_VARIABLE = "XPSR_JAX_BUCKET_CACHE_GB"
_DEFAULT_GB = 32.0
# What is begun in a bucket and not complete has an object of this name (`uploads`).
INCOMPLETE = ".incomplete"
_SAID_FROM = 10 * 2**20  # bytes


class Copy:
    """A local copy that stays as long as it is not closed, or this process ends.

    Attributes:
      path: the file or folder.
      size: in bytes.
    """

    def __init__(self, path: Path, size: int, lock: int):
        self.path, self.size, self._lock = path, size, lock

    def close(self) -> None:
        """The copy may go from here on. What is open of it stays readable."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "Copy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def copy_file(path: BucketPath, *, max_bytes: int | None = None) -> Copy:
    """A local copy of a file.

    Raises UserError if it is not there, is larger than `max_bytes` or than the cache, or the disk is full.
    """
    try:
        info = path.info()
        if info["type"] != "file":
            raise UserError(f"{path} cannot be read: it is a folder, not a file")
        if max_bytes is not None and info["size"] > max_bytes:
            raise UserError(
                f"{path} cannot be read: it has {info['size']:,} bytes, more than the limit of {max_bytes:,}"
            )
        return _copy(path, {"": info})
    except FileNotFoundError as error:
        raise UserError(f"{path} cannot be read: there is no such file in the bucket") from error


def local_file(path: Path) -> Path:
    """A local path is itself; of a file in a bucket it is a copy's, kept until this process ends. Raises UserError."""
    return _kept(path, None).path if isinstance(path, BucketPath) else path


def local_folder(path: Path, wanted: Callable[[str], bool] | None = None) -> Path:
    """The same of a folder with all that is in it, or with those files whose relative paths are `wanted`.

    Raises UserError if it does not exist, or is incomplete: an upload to it has not ended.
    """
    return _kept(path, wanted or _all).path if isinstance(path, BucketPath) else path


def _all(name: str) -> bool:
    return True


@functools.lru_cache(maxsize=64)
def _kept(path: BucketPath, wanted: Callable[[str], bool] | None) -> Copy:
    return copy_file(path) if wanted is None else copy_folder(path, wanted)


def copy_folder(path: BucketPath, wanted: Callable[[str], bool] = _all) -> Copy:
    """A local copy of a folder. Raises as `local_folder`."""
    check_complete(path)
    files = path.files()
    found = {name: info for name, info in files.items() if wanted(name)}
    if not found:
        raise UserError(f"{path}: there is no such folder in the bucket")
    return _copy(path, found)


def check_complete(path: BucketPath) -> None:
    """Raises UserError if the folder has the mark of an incomplete one."""
    if (path / INCOMPLETE).is_file():
        raise UserError(
            f"{path} is incomplete: it is being uploaded, or that was stopped. Wait, or make it again; "
            f"if you know that it is whole, remove {path / INCOMPLETE}"
        )


def bound() -> int:
    """The most bytes that copies take together: XPSR_JAX_BUCKET_CACHE_GB, in 10^9 bytes. Raises UserError."""
    text = os.environ.get(_SIZE_VARIABLE, "")
    try:
        size = float(text) if text else _DEFAULT_GB
        if not 0 < size < 1e9:
            raise ValueError
    except ValueError:
        raise UserError(f"{_SIZE_VARIABLE} must be a number of gigabytes above 0, not {text!r}") from None
    return int(size * 1e9)


def version_of(info: dict[str, Any]) -> str:
    """What changes whenever a file in a bucket does."""
    return str(info.get("generation") or info.get("ETag") or info.get("etag") or info.get("mtime"))


def _copy(path: BucketPath, files: dict[str, dict[str, Any]]) -> Copy:
    """`files` below `path`, "" the path itself."""
    size = sum(info["size"] for info in files.values())
    key = repr([str(path), *((name, version_of(info), info["size"]) for name, info in files.items())])
    entry = _root() / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
    lock = _hold(entry)
    try:
        if not entry.exists():
            _make_room(size, path)
            if size >= _SAID_FROM:
                many = f"{len(files)} files, " if len(files) > 1 else ""
                say(f"{path}: {many}{size / 1e9:.2f} GB are copied to {entry.parent}", to_stderr=True)
            _download(path, files, entry)
        os.utime(entry)
    except OSError as error:
        os.close(lock)
        if isinstance(error, FileNotFoundError):
            raise
        room = f"; {_SIZE_VARIABLE} bounds the copies" if error.errno == errno.ENOSPC else ""
        raise UserError(f"{path} cannot be copied to {entry.parent}: {error.strerror or error}{room}") from error
    except BaseException:
        os.close(lock)
        raise
    return Copy(entry / path.name, size, lock)


def _download(path: BucketPath, files: dict[str, dict[str, Any]], entry: Path) -> None:
    # In the same file system, under a name of its own: another process may be at the same.
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".new-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "entry"
        places = {name: made / path.name / name if name else made / path.name for name in files}
        for place in places.values():
            place.parent.mkdir(parents=True, exist_ok=True)
        with explained(path, "read"):
            # fsspec copies many at once.
            sources = [f"{path.key}/{name}".rstrip("/") for name in files]
            tried(lambda: path.fs.get(sources, [str(each) for each in places.values()]))
        for name, place in places.items():
            if place.stat().st_size != files[name]["size"]:
                raise UserError(f"{path / name if name else path} cannot be read: it changed meanwhile; try again")
        with contextlib.suppress(OSError):  # who came first has made the same
            made.rename(entry)


def _hold(entry: Path) -> int:
    """A shared lock of a copy, which need not exist yet; closing it releases it."""
    while True:
        lock = os.open(_lock_of(entry), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(_lock_of(entry))):
                return lock
        os.close(lock)  # it was removed with the copy before it was held


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.lock")


def _make_room(size: int, path: BucketPath) -> None:
    """Removes copies that nobody uses until there is room for so many bytes more."""
    limit = bound()
    if size > limit:
        raise UserError(
            f"{path} has {size / 1e9:.3g} GB, more than local copies may have together; raise {_SIZE_VARIABLE} "
            f"(now {limit / 1e9:g})"
        )
    entries = sorted(_entries(), key=lambda each: each[1])
    total = sum(used for _, _, used in entries)
    for entry, _, used in entries:
        if total + size <= limit:
            return
        if _remove_unused(entry):
            total -= used
    if total + size > limit:
        raise UserError(
            f"{path}: there is no room for its {size / 1e9:.3g} GB beside the copies that are in use; raise "
            f"{_SIZE_VARIABLE} (now {limit / 1e9:g})"
        )


def _entries() -> Iterator[tuple[Path, float, int]]:
    """Copies, when each was used last, and how many bytes it takes."""
    for entry in _root().iterdir():
        with contextlib.suppress(OSError):
            if entry.is_dir() and not entry.name.startswith("."):
                used = sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
                yield entry, entry.stat().st_mtime, used


def _remove_unused(entry: Path) -> bool:
    lock = os.open(_lock_of(entry), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry, ignore_errors=True)
        _lock_of(entry).unlink(missing_ok=True)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)


def _root() -> Path:
    kept = cache_folder()
    root = kept / "buckets" if kept is not None else Path(_temporary().name)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root}: copies of what is in buckets cannot be kept here: {error.strerror}") from error
    return root


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="xpsr_jax-buckets-")
