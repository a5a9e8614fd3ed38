"""Local copies of files and folders in buckets, in a cache of bounded size. The least recently used are removed first.

The cache is the folder `buckets` in `machine.cache_folder`, or a temporary folder of this process if there is none.
Each copy has a folder, named after the path and the versions of the files in the bucket. A changed file therefore gives
another copy. All users of a copy share its lock, `NAME.lock`. A copy that is not locked may be removed.
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
# A folder in a bucket with an object of this name is not complete (`uploads`).
INCOMPLETE = ".incomplete"
_ANNOUNCED_BYTES = 10 * 2**20  # copies of at least this size are announced


class Copy:
    """A local copy, which is kept until it is closed or this process ends.

    Attributes:
      path: the file or folder.
      size: size in bytes.
    """

    def __init__(self, path: Path, size: int, lock: int):
        self.path, self.size, self._lock = path, size, lock

    def close(self) -> None:
        """Allows the removal of the copy. Files that are open stay readable."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "Copy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def copy_file(path: BucketPath, *, max_bytes: int | None = None) -> Copy:
    """Makes a local copy of a file.

    Raises UserError if it does not exist, is larger than `max_bytes` or than the cache, or the disk is full.
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
    """The path of a local copy of a file in a bucket, kept until this process ends. Local paths are returned unchanged.

    Raises the errors of `copy_file`.
    """
    return _kept(path, None).path if isinstance(path, BucketPath) else path


def local_folder(path: Path, wanted: Callable[[str], bool] | None = None) -> Path:
    """Like `local_file` for a folder, with all its files or only those whose relative paths are `wanted`.

    Raises UserError if the folder does not exist, or is incomplete because an upload to it has not ended.
    """
    return _kept(path, wanted or _all).path if isinstance(path, BucketPath) else path


def _all(name: str) -> bool:
    return True


@functools.lru_cache(maxsize=64)
def _kept(path: BucketPath, wanted: Callable[[str], bool] | None) -> Copy:
    return copy_file(path) if wanted is None else copy_folder(path, wanted)


def copy_folder(path: BucketPath, wanted: Callable[[str], bool] = _all) -> Copy:
    """Makes a local copy of a folder. Raises the errors of `local_folder`."""
    check_complete(path)
    files = path.files()
    found = {name: info for name, info in files.items() if wanted(name)}
    if not found:
        raise UserError(f"{path}: there is no such folder in the bucket")
    return _copy(path, found)


def check_complete(path: BucketPath) -> None:
    """Raises UserError if the folder is marked as incomplete."""
    if (path / INCOMPLETE).is_file():
        raise UserError(
            f"{path} is incomplete: its upload is running or was stopped. Wait, or repeat the upload; "
            f"if you are sure that it is complete, remove {path / INCOMPLETE}"
        )


def bound() -> int:
    """The limit in bytes of all copies together, from XPSR_JAX_BUCKET_CACHE_GB (10^9 bytes each). Raises UserError."""
    text = os.environ.get(_SIZE_VARIABLE, "")
    try:
        size = float(text) if text else _DEFAULT_GB
        if not 0 < size < 1e9:
            raise ValueError
    except ValueError:
        raise UserError(f"{_SIZE_VARIABLE} must be a number of gigabytes above 0, not {text!r}") from None
    return int(size * 1e9)


def version_of(info: dict[str, Any]) -> str:
    """The version of a file in a bucket. It changes whenever the file changes."""
    return str(info.get("generation") or info.get("ETag") or info.get("etag") or info.get("mtime"))


def _copy(path: BucketPath, files: dict[str, dict[str, Any]]) -> Copy:
    """Copies `files`, given by their paths relative to `path`; "" is the path itself."""
    size = sum(info["size"] for info in files.values())
    key = repr([str(path), *((name, version_of(info), info["size"]) for name, info in files.items())])
    entry = _root() / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
    lock = _hold(entry)
    try:
        if not entry.exists():
            _make_room(size, path)
            if size >= _ANNOUNCED_BYTES:
                many = f"{len(files)} files, " if len(files) > 1 else ""
                say(f"{path}: copying {many}{size / 1e9:.2f} GB to {entry.parent}", to_stderr=True)
            _download(path, files, entry)
        os.utime(entry)
    except OSError as error:
        os.close(lock)
        if isinstance(error, FileNotFoundError):
            raise
        room = f"; {_SIZE_VARIABLE} limits the size of all copies" if error.errno == errno.ENOSPC else ""
        raise UserError(f"{path} cannot be copied to {entry.parent}: {error.strerror or error}{room}") from error
    except BaseException:
        os.close(lock)
        raise
    return Copy(entry / path.name, size, lock)


def _download(path: BucketPath, files: dict[str, dict[str, Any]], entry: Path) -> None:
    # In the same file system, and with a unique name: another process may copy the same files.
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".new-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "entry"
        places = {name: made / path.name / name if name else made / path.name for name in files}
        for place in places.values():
            place.parent.mkdir(parents=True, exist_ok=True)
        with explained(path, "read"):
            # fsspec copies many files in parallel.
            sources = [f"{path.key}/{name}".rstrip("/") for name in files]
            tried(lambda: path.fs.get(sources, [str(each) for each in places.values()]))
        for name, place in places.items():
            if place.stat().st_size != files[name]["size"]:
                raise UserError(f"{path / name if name else path} cannot be read: it has just changed; try again")
        with contextlib.suppress(OSError):  # another process has made the same copy first
            made.rename(entry)


def _hold(entry: Path) -> int:
    """Takes a shared lock of a copy, which need not exist yet. Closing the returned file descriptor releases it."""
    while True:
        lock = os.open(_lock_of(entry), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(_lock_of(entry))):
                return lock
        os.close(lock)  # the lock file was removed with its copy before it was locked here


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.lock")


def _make_room(size: int, path: BucketPath) -> None:
    """Removes unused copies until there is room for `size` more bytes."""
    limit = bound()
    if size > limit:
        raise UserError(
            f"{path} has {size / 1e9:.3g} GB, more than the limit of all local copies; raise {_SIZE_VARIABLE} "
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
            f"{path}: no room for its {size / 1e9:.3g} GB, because other copies are in use; raise {_SIZE_VARIABLE} "
            f"(now {limit / 1e9:g})"
        )


def _entries() -> Iterator[tuple[Path, float, int]]:
    """All copies, each with the time of its last use and its size in bytes."""
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
        raise UserError(f"{root}: the cache for buckets cannot be created here: {error.strerror}") from error
    return root


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="xpsr_jax-buckets-")
