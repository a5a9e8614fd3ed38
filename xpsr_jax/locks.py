"""Locks that prevent two commands from writing the same output. A process that ends or is killed releases its locks."""

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

# Errors of file systems without locks. On these, the commands work without a lock.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def locked(file: Path, what: object, *, shared: bool = False) -> Iterator[None]:
    """Holds a lock on `file`. The file is created for it, and removed at the end unless the lock was shared.

    Args:
      file: lock file, in an existing folder.
      what: the locked file or folder, for the message.
      shared: several processes may hold the lock at the same time if all of them set this: processes of one job.

    In a bucket, the file is an object that its holder renews (`buckets.lock`).

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
            # Removed while the lock is held: a process that has already opened the file notices that it was replaced.
            if not shared:
                file.unlink(missing_ok=True)
            # Unlocked and not only closed, because a child process may have it open too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def locked_folder(folder: Path, *, shared: bool = False) -> contextlib.AbstractContextManager[None]:
    """The lock of an existing folder that is written into. The lock file is `.lock` in the folder."""
    return locked(folder / ".lock", folder, shared=shared)


@contextlib.contextmanager
def locked_output(output: Path) -> Iterator[None]:
    """The lock of a file or folder that appears only when it is complete. The lock file is next to it."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be created: {error.strerror} ({error.filename})") from error
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
                    f"{what} is being written by another process{_holder(descriptor)}: wait until it ends, or choose "
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
        # After it was opened here, the previous holder has removed the file.
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
