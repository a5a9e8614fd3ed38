"""Files and folders that appear under their name only when they are complete."""

import contextlib
import glob
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from xpsr_jax.errors import UserError


@contextlib.contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """A name beside `file` to write to, which becomes `file` at the end, or nothing after an error.

    Raises UserError where the system refuses to write (no permission, disk full).
    """
    beginning = f".{file.name}.{platform.node()}-"
    temporary = file.with_name(f"{beginning}{os.getpid()}.partial")
    _remove_leftovers(file.parent, beginning)
    try:
        yield temporary
        os.replace(temporary, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path, *, replaceable: frozenset[str] | None = None) -> Iterator[Path]:
    """An empty folder beside `folder` to fill, which becomes `folder` at the end, or nothing after an error.

    Args:
      replaceable: None: `folder` must not exist, or be empty. Otherwise it is replaced if it holds only entries of
        these names.

    Raises:
      UserError: `folder` exists and may not be replaced, or cannot be made.
    """
    folder = folder.resolve()
    check_free(folder, replaceable=replaceable)
    beginning = f".{folder.name}.{platform.node()}-"
    temporary, aside = (folder.with_name(f"{beginning}{os.getpid()}.{suffix}") for suffix in ("partial", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder.parent, beginning)
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


def _remove_leftovers(parent: Path, beginning: str) -> None:
    """Removes what processes of this machine left here that were killed before they could."""
    for leftover in parent.glob(f"{glob.escape(beginning)}*.partial"):
        pid = leftover.name.removeprefix(beginning).removesuffix(".partial")
        if pid.isdecimal() and not _runs(int(pid)):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # It is another user's.
        return True
    return True


def check_free(folder: Path, *, replaceable: frozenset[str] | None = None) -> None:
    """Raises UserError unless `new_folder` may make this folder; to be asked before long work."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder")
    names = {path.name for path in folder.iterdir()}
    if names and replaceable is None:
        raise UserError(f"{folder} exists already; name another folder or say --overwrite")
    if other := sorted(names - (replaceable or frozenset())):
        raise UserError(f"{folder} is not replaced, for it also holds {', '.join(other[:5])}; name another folder")
