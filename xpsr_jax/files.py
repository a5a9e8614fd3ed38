"""Files and folders: written whole or not at all, and read only if they are what they should be.

Paths in buckets are served too (`buckets.paths.as_path`), of which the functions say nothing else where all is as on a
disk: what a bucket cannot do or the extra is missing for is a UserError.
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

# The longest name that every file system in use takes, in bytes (eCryptfs; most take 255).
_NAME_BYTES = 143


@contextlib.contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """A name beside `file` to write to, which becomes `file` at the end, or nothing after an error.

    For a file in a bucket it is a name on this machine, and what it names is uploaded.

    Raises UserError where the system refuses to write (no permission, disk full).
    """
    if isinstance(file := as_path(file), BucketPath):
        with uploads.new_file(file) as made:
            yield made
        return
    temporary = beside(file, _mine("partial"))
    try:
        _remove_leftovers(file.parent)
        yield temporary
        os.replace(temporary, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(text: str, file: Path) -> None:
    """Writes a text file in UTF-8; bytes of file names that are not UTF-8 as escapes. Raises as `new_file`."""
    with new_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def new_folder(folder: Path, *, replaceable: frozenset[str] | None = None) -> Iterator[Path]:
    """An empty folder beside `folder` to fill, which becomes `folder` at the end, or nothing after an error.

    For a folder in a bucket it is one on this machine, and is uploaded: the folder is marked as incomplete meanwhile.

    Args:
      replaceable: None: `folder` must not exist, or be empty. Otherwise it is replaced if it holds only entries of
        these names.

    Raises:
      UserError: `folder` exists and may not be replaced, or cannot be made.
    """
    folder = resolved(as_path(folder))
    if not isinstance(folder, BucketPath):
        _put_back(folder)
    check_free(folder, replaceable=replaceable)
    if isinstance(folder, BucketPath):
        with uploads.new_folder(folder) as made:
            yield made
        return
    temporary, aside = (beside(folder, _mine(what)) for what in ("partial", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder.parent)
        temporary.mkdir()
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror} ({error.filename})") from error
    try:
        yield temporary
        if folder.exists():
            folder.rename(aside)
        try:
            temporary.rename(folder)
        except OSError:
            if aside.exists():
                aside.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _put_back(folder: Path) -> None:
    """Ends what a process began that was killed while it replaced a folder: the old one returns, or is removed."""
    for name in entries(folder.parent):
        found = re.fullmatch(rf".*\.({_node()}-(\d+)\.old)", name, re.DOTALL)
        if found and name == beside(folder, found[1]).name and not process_runs(int(found[2])):
            if folder.exists():
                shutil.rmtree(folder.parent / name, ignore_errors=True)
            else:
                (folder.parent / name).rename(folder)


def entries(folder: Path) -> set[str]:
    """The names of what is in a folder; none if there is no such folder.

    Asked once: what another process removes, also the last of a bucket's folder, is never met between two questions.
    """
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def check_free(folder: Path, *, replaceable: frozenset[str] | None = None) -> None:
    """Raises UserError unless `new_folder` may make this folder; to be asked before long work."""
    folder = as_path(folder)
    if not (folder.exists() or folder.is_symlink()):
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder")
    names = entries(folder)
    if isinstance(folder, BucketPath):
        names.discard(INCOMPLETE)
    if names and replaceable is None:
        raise UserError(f"{folder} exists already; name another folder or say --overwrite")
    if other := sorted(names - (replaceable or frozenset())):
        raise UserError(f"{folder} is not replaced, because it also holds {listed(other)}; name another folder")


def check_writable(folder: Path) -> None:
    """Makes a folder, and a file in it for a moment: better to raise `UserError` now than after hours of work."""
    if isinstance(folder := as_path(folder), BucketPath):
        return uploads.check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot write into this folder: {error.strerror or error}") from error


def beside(path: Path, ending: str) -> Path:
    """A hidden name in the same folder, `.NAME.ending`: always the same one for the same path.

    It needs no more bytes than the path's own name (or than any file system takes): a long one is shortened.
    """
    name, room = path.name, max(_NAME_BYTES, len(os.fsencode(path.name))) - len(f"..{ending}")
    if len(encoded := os.fsencode(name)) > room:
        name = f"{encoded[: room - 13].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:12]}"
    return path.with_name(f".{name}.{ending}")


def open_regular(path: Path, *, max_bytes: int | None = None) -> io.BufferedReader:
    """Opens a regular file, or a link to one, for reading.

    Raises UserError for anything else (a pipe would wait for ever, a device never end), for loops of links, for what
    cannot be read, and for files of more than `max_bytes`. A file in a bucket is copied first (`buckets.cache`).
    """
    if isinstance(path, BucketPath):
        with copy_file(path, max_bytes=max_bytes) as copy:
            return copy.path.open("rb")
    try:
        # A pipe that came here after the first look would let open() wait.
        kind = os.stat(path).st_mode
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if stat.S_ISREG(kind) else None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # NUL, or a text that is no file name
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
    """All bytes of a regular file. Raises as `open_regular`."""
    with open_regular(path, max_bytes=max_bytes) as file:
        parts, room = [], max_bytes + 1
        try:
            # Not `read(room)`, which takes memory for all of it. A file may have more than it said, or grow.
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
    """Another path to the same place without characters of patterns, for Orbax: it takes [1] in a path for a pattern.

    The path is absolute; in a bucket it is etils' kind of path. Where it has such characters, it leads through a
    temporary link to its folder.

    Raises UserError if there can be no such path.
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
    """Removes a folder with all that is in it, or as much as can be, if it is there."""
    if isinstance(folder, BucketPath):
        folder.remove_tree()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def leads_out(name: str) -> bool:
    """Whether a relative path in a file of somebody else may lead out of the folder that it should be below."""
    return name.startswith("/") or ".." in name.split("/")


def resolved(path: Path) -> Path:
    """`path.resolve()`, with UserError for loops of links and names that cannot be."""
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


@functools.cache
def _node() -> str:
    """This machine, in a few characters."""
    return "xpsr" + hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@functools.lru_cache(maxsize=1024)
def _remove_leftovers(parent: Path) -> None:
    """Removes what processes of this machine left here that were killed before they could; once a process."""
    pattern = re.compile(rf"\..*\.{_node()}-(\d+)\.partial", re.DOTALL)
    with os.scandir(parent) as entries:
        leftovers = [entry for entry in entries if (m := pattern.fullmatch(entry.name)) and not process_runs(int(m[1]))]
    for leftover in leftovers:
        if leftover.is_dir(follow_symlinks=False):
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(leftover)
