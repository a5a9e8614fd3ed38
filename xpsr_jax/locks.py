"""Locks that keep two commands from writing the same output; a process that ends, however it does, releases its own."""

import contextlib
import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from xpsr_jax.buckets import lock as in_buckets
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.errors import UserError
from xpsr_jax.files import beside

# What file systems say that have no locks. There the commands go on without.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def locked(file: Path, what: object, *, shared: bool = False) -> Iterator[None]:
    """Holds the lock that `file` stands for. The file is made for it, and removed again unless the lock was shared.

    Args:
      file: in a folder that exists.
      what: is locked, for the message.
      shared: several may hold the lock at once, if all of them ask for it so: processes of one job.

    In a bucket the file is an object that its holder renews (`buckets.lock`).

    Raises UserError at once if another process holds it, or if the file cannot be written.
    """
    if isinstance(file, BucketPath):
        with in_buckets.locked(file, what, shared=shared):
            yield
        return
    descriptor = _acquire(file, what, shared)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # While it is still held: who opened the file before it went sees that it is another by then.
            if not shared:
                file.unlink(missing_ok=True)
            # Not only closed: a child process may have it open too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def locked_folder(folder: Path, *, shared: bool = False) -> contextlib.AbstractContextManager[None]:
    """The lock of a folder that exists and is written into; its file is `.lock` in it."""
    return locked(folder / ".lock", folder, shared=shared)


@contextlib.contextmanager
def locked_output(output: Path) -> Iterator[None]:
    """The lock of a file or folder that appears when it is complete; its file is beside it."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be made: {error.strerror} ({error.filename})") from error
    with locked(beside(output, "lock"), output):
        yield


def _acquire(file: Path, what: object, shared: bool) -> int:
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror}") from error
        try:
            if not _hold(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
                raise UserError(
                    f"{what} is being written by another process{_holder(descriptor)}: wait until it ends, or name "
                    "another output"
                )
            if _is_still(file, descriptor):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} on {platform.node()}".encode(), 0)
                return descriptor
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise UserError(f"{file} cannot be locked: {error.strerror}") from error
            raise
        # The one that held it has ended, and removed the file, after it was opened here.
        os.close(descriptor)


def _hold(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, 300, 0).decode(errors="replace")
    return f" ({text})" if text else ""


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False
