"""Writes files and folders atomically, and reads only regular files.

Paths in buckets work too (`buckets.paths.as_path`). The docstrings mention buckets only where they differ from a disk.
Operations that a bucket does not support, and a missing extra, are a UserError.
"""

import contextlib
import functools
import glob
import hashlib
import io
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from xpsr_jax.buckets import uploads
from xpsr_jax.buckets.cache import INCOMPLETE, copy_file
from xpsr_jax.buckets.paths import BucketPath, as_path
from xpsr_jax.errors import UserError, listed
from xpsr_jax.machine import process_runs

if TYPE_CHECKING:
    from etils import epath

ByteFile = io.BufferedReader | io.BytesIO
"""An open file of bytes, on disk or in memory."""

# The longest name, in bytes, that all common file systems support (eCryptfs; most support 255).
_NAME_BYTES = 143


@contextlib.contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """Gives a temporary path next to `file` to write to. At the end it becomes `file`; after an error it is removed.

    For a file in a bucket, the temporary path is local, and the file is uploaded at the end.

    Raises UserError if writing fails (no permission, disk full).
    """
    if isinstance(file := as_path(file), BucketPath):
        with uploads.new_file(file) as made:
            yield made
        return
    temporary = beside(file, _mine("partial"))
    try:
        _remove_leftovers(file.parent)
        _in_use.add(temporary.name)
        yield temporary
        os.replace(temporary, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _in_use.discard(temporary.name)


def write_text(text: str, file: Path) -> None:
    """Writes a text file in UTF-8. Bytes of file names that are not UTF-8 are escaped. Raises errors of `new_file`."""
    with new_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def new_folder(folder: Path, *, replaceable: frozenset[str] | None = None) -> Iterator[Path]:
    """Gives an empty temporary folder to fill. At the end it becomes `folder`; after an error it is removed.

    For a folder in a bucket, the temporary folder is local. It is uploaded at the end, and `folder` is marked as
    incomplete during the upload.

    Args:
      replaceable: None: `folder` must not exist, or must be empty. Otherwise it is replaced if all its entries have
        these names.

    Raises:
      UserError: `folder` exists and may not be replaced, or cannot be created.
    """
    folder = resolved(as_path(folder))
    put_back(folder)
    check_free(folder, replaceable=replaceable)
    if isinstance(folder, BucketPath):
        with uploads.new_folder(folder) as made:
            yield made
        return
    temporary, aside = (beside(folder, _mine(what)) for what in ("partial", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder.parent)
        _in_use.update((temporary.name, aside.name))
        temporary.mkdir()
    except OSError as error:
        _in_use.difference_update((temporary.name, aside.name))
        raise UserError(f"{folder} cannot be created: {error.strerror} ({error.filename})") from error
    try:
        yield temporary
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)  # an older version, left by a killed process with this one's id
            folder.rename(aside)
        try:
            temporary.rename(folder)
        except OSError:
            if aside.exists():
                aside.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _in_use.difference_update((temporary.name, aside.name))
        if folder.exists():
            for old in _replaced(folder):  # `aside` is one of them
                shutil.rmtree(old, ignore_errors=True)


def put_back(folder: Path) -> None:
    """Restores a folder that is missing because a process was killed while it replaced the folder by a new one.

    It has no effect on paths in buckets, on folders that exist, and where the system refuses.
    """
    if isinstance(folder, BucketPath):
        return
    with contextlib.suppress(OSError):
        if not folder.exists() and (old := _replaced(folder)):
            old[-1].rename(folder)


def _replaced(folder: Path) -> list[Path]:
    """Former versions of a folder that nobody uses, beside it, in the order of their names."""
    left = sorted(name for name in entries(folder.parent) if _is_left(name, "old"))
    own = (name for name in left if name == beside(folder, name[name.rindex(_node()) :]).name)
    return [folder.with_name(name) for name in own]


def entries(folder: Path) -> set[str]:
    """The names in a folder; empty if the folder does not exist.

    It makes a single request. If another process removes the folder, this cannot happen between two requests.
    """
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def check_free(folder: Path, *, replaceable: frozenset[str] | None = None) -> None:
    """Raises UserError if `new_folder` would refuse this folder. Call it before long work."""
    folder = as_path(folder)
    if not (folder.exists() or folder.is_symlink()):
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder")
    names = entries(folder)
    if isinstance(folder, BucketPath):
        names.discard(INCOMPLETE)
    if names and replaceable is None:
        raise UserError(f"{folder} already exists; choose another folder, or use --overwrite")
    if other := sorted(names - (replaceable or frozenset())):
        raise UserError(f"{folder} is not replaced, because it also holds {listed(other)}; choose another folder")


def check_writable(folder: Path) -> None:
    """Creates a folder and a temporary file in it, to raise `UserError` now and not after hours of work."""
    if isinstance(folder := as_path(folder), BucketPath):
        return uploads.check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot write into this folder: {error.strerror or error}") from error


def beside(path: Path, ending: str) -> Path:
    """A hidden path in the same folder, `.NAME.ending`. The same path always gives the same result.

    Long names are shortened: the result needs no more bytes than the path's own name, or than the limit of all file
    systems.
    """
    name, room = path.name, max(_NAME_BYTES, len(os.fsencode(path.name))) - len(f"..{ending}")
    if len(encoded := os.fsencode(name)) > room:
        name = f"{encoded[: room - 13].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:12]}"
    return path.with_name(f".{name}.{ending}")


def open_regular(path: Path, *, max_bytes: int | None = None) -> io.BufferedReader:
    """Opens a regular file, or a link to one, for reading.

    A file in a bucket is copied first (`buckets.cache`).

    Raises UserError if it is not a regular file (reading a pipe or a device might never end), if the links form a loop,
    if it cannot be read, or if it has more than `max_bytes`.
    """
    if isinstance(path, BucketPath):
        with copy_file(path, max_bytes=max_bytes) as copy:
            return copy.path.open("rb")
    try:
        # O_NONBLOCK, because the file may have been replaced by a pipe after os.stat: open() would wait.
        kind = os.stat(path).st_mode
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if stat.S_ISREG(kind) else None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL character, or another invalid name
        raise UserError(f"{path} cannot be read: it is not a valid file name") from error
    if file is None or not stat.S_ISREG((status := os.fstat(file)).st_mode):
        if file is not None:
            os.close(file)
        raise UserError(f"{path} cannot be read: it is a {_kind(kind)}, not a file")
    if max_bytes is not None and status.st_size > max_bytes:
        os.close(file)
        raise UserError(f"{path} cannot be read: it has {status.st_size:,} bytes, more than the limit of {max_bytes:,}")
    return os.fdopen(file, "rb")


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """All bytes of a regular file. Raises the errors of `open_regular`."""
    with open_regular(path, max_bytes=max_bytes) as file:
        parts, room = [], max_bytes + 1
        try:
            # Not `read(room)`, which allocates memory for all of it. A file may be larger than its size says, or grow.
            size = max(os.fstat(file.fileno()).st_size, 2**16)
            while room and (part := file.read(min(room, size + 1))):
                parts.append(part)
                room -= len(part)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not room:
        raise UserError(f"{path} cannot be read: it has more bytes than the limit of {max_bytes:,}")
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextlib.contextmanager
def without_patterns(path: Path) -> Iterator["Path | epath.Path"]:
    """Gives a path to the same place without pattern characters. Orbax treats [1] in a path as a pattern.

    The path is absolute; in a bucket it is a path of etils. A path with such characters is replaced by one through a
    temporary link to its folder.

    Raises UserError if that is not possible.
    """
    path = resolved(path)
    if not glob.has_magic(str(path)):
        yield path.epath if isinstance(path, BucketPath) else path
        return
    if isinstance(path, BucketPath):
        raise _no_patterns(path)
    with tempfile.TemporaryDirectory(prefix="xpsr_jax-") as folder:
        link = Path(folder) / "folder"
        link.symlink_to(path.parent, target_is_directory=True)
        if glob.has_magic(str(link / path.name)):
            raise _no_patterns(path)
        yield link / path.name


def _no_patterns(path: Path) -> UserError:
    return UserError(f"{path}: checkpoints need a path without the characters [ ] * ?")


def remove_tree(folder: Path) -> None:
    """Removes a folder and its content, as far as possible. A missing folder is ignored."""
    if isinstance(folder, BucketPath):
        folder.remove_tree()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def leads_out(name: str) -> bool:
    """Whether a relative path from a foreign file may point outside its folder."""
    return name.startswith("/") or ".." in name.split("/")


def resolved(path: Path) -> Path:
    """`path.resolve()`, with UserError for loops of links and invalid names."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a valid path: {getattr(error, 'strerror', None) or error}") from error


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "folder", stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket"}
    return next((name for test, name in kinds.items() if test(mode)), "device")


def _mine(ending: str) -> str:
    """The ending of this process's temporary names."""
    return f"{_node()}-{os.getpid()}.{ending}"


def _is_left(name: str, ending: str) -> bool:
    """Whether this is a temporary name of a killed process of this machine.

    In a new container, this process may have the id of a process that was killed before.
    """
    found = re.fullmatch(rf"\..*\.{_node()}-(\d+)\.{ending}", name, re.DOTALL)
    if found is None or name in _in_use:
        return False
    return int(found[1]) == os.getpid() or not process_runs(int(found[1]))


# Temporary names that this process uses now.
_in_use: set[str] = set()


@functools.cache
def _node() -> str:
    """A short name of this machine."""
    return "xpsr" + hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@functools.lru_cache(maxsize=1024)
def _remove_leftovers(parent: Path) -> None:
    """Removes temporary files and folders of killed processes of this machine. Runs once per process and folder."""
    with os.scandir(parent) as entries:
        leftovers = [entry for entry in entries if _is_left(entry.name, "partial")]
    for leftover in leftovers:
        if leftover.is_dir(follow_symlinks=False):
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(leftover)
