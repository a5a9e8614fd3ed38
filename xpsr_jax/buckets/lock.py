"""Locks for files and folders in a bucket. A lock is an object, which only one process can create and which it renews.

A process that ends normally removes its lock. A killed process leaves it. On the same machine this is noticed at once.
On other machines, a lock expires if it has not been renewed for `LEASE` seconds.
"""

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator

from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.errors import UserError, printable, say
from xpsr_jax.machine import process_runs

LEASE = 300.0
_RENEWED_EVERY = 60.0


@contextlib.contextmanager
def locked(file: BucketPath, what: object, *, shared: bool = False) -> Iterator[None]:
    """Holds an exclusive lock, the object `file`, or a shared one, an object beside it. See `locks.locked`."""
    token = os.urandom(8).hex()
    mine = file.with_name(f"{file.name}.{token}") if shared else file
    _acquire(mine, what, token)
    stop = threading.Event()
    keeper = threading.Thread(target=_renew, args=(mine, token, stop), daemon=True)
    try:
        # Each process first creates its own lock, then looks for the other kind. Of two at once, at most one continues.
        for other in [file] if shared else _shared_locks(file):
            if holder := _holder(other):
                raise _taken(what, holder)
        keeper.start()
        yield
    finally:
        stop.set()
        if keeper.ident is not None:
            keeper.join()
        with contextlib.suppress(UserError, OSError):
            if _token(mine) == token:
                mine.unlink(missing_ok=True)


def _acquire(file: BucketPath, what: object, token: str) -> None:
    for _ in range(3):
        # If the answer to the first request was lost, the object exists and has our token.
        if file.create(_content(token)) or _token(file) == token:
            return
        if holder := _holder(file):
            raise _taken(what, holder)
        file.unlink(missing_ok=True)  # its holder was killed
    raise _taken(what, "several are trying at the same time")


def _taken(what: object, holder: str) -> UserError:
    return UserError(
        f"{what} is being written by another process ({holder}): wait until it ends, or choose another output"
    )


def _shared_locks(file: BucketPath) -> list[BucketPath]:
    try:
        return [path for path in file.parent.iterdir() if path.name.startswith(f"{file.name}.")]
    except FileNotFoundError:
        return []


def _content(token: str) -> bytes:
    return json.dumps({"token": token, "pid": os.getpid(), "host": platform.node(), "time": time.time()}).encode()


def _read(file: BucketPath) -> dict:
    try:
        content = json.loads(file.read_bytes())
        return content if isinstance(content, dict) else {}
    except (FileNotFoundError, ValueError):
        return {}


def _token(file: BucketPath) -> str | None:
    return _read(file).get("token")


def _holder(file: BucketPath) -> str | None:
    """The process that holds the lock; None if it is free, or its holder was killed."""
    content = _read(file)
    pid, host, renewed = content.get("pid"), content.get("host"), content.get("time")
    if not isinstance(pid, int) or not isinstance(renewed, int | float):
        return None
    if time.time() - renewed > LEASE or (host == platform.node() and not process_runs(pid)):
        return None
    return printable(f"{pid} on {host}")


def _renew(file: BucketPath, token: str, stop: threading.Event) -> None:
    while not stop.wait(_RENEWED_EVERY):
        try:
            if _token(file) not in (token, None):
                say(f"{file}: another process has taken this lock, which was not renewed in time", to_stderr=True)
                return
            file.write_bytes(_content(token))
        except (UserError, OSError):
            continue  # try again after the next pause
