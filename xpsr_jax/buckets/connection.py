"""The file systems of buckets, from fsspec. Their errors become one line."""

import contextlib
import functools
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from xpsr_jax.errors import UserError, in_one_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

# Seconds to wait before each retry.
_PAUSES = (0.5, 2.0, 8.0)
# The packages that each scheme needs.
PACKAGES = {"gs": ("gcsfs",), "s3": ("s3fs",)}


def check_installed(scheme: str) -> None:
    """Raises UserError if a package for this scheme is not installed. Imports nothing."""
    if any(importlib.util.find_spec(name) is None for name in PACKAGES[scheme]):
        raise UserError(f'{scheme}:// needs an extra that is not installed: pip install "xpsr-jax[bucket]"')


def filesystem(scheme: str) -> "AbstractFileSystem":
    """The file system of a scheme, one for all threads of a process. Raises UserError."""
    return _filesystem(scheme, os.getpid())  # a child process cannot use its parent's file system


@functools.cache
def _filesystem(scheme: str, _process: int) -> "AbstractFileSystem":
    check_installed(scheme)
    configure()
    import fsspec

    with explained(f"{scheme}://", "reached"):
        return fsspec.filesystem(scheme)


@functools.cache
def configure() -> None:
    """Configures fsspec for this process, also for Orbax, which uses fsspec too.

    Listings are not cached, because other processes write to the same buckets.
    """
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        # With this, gcsfs would ask a service that emulators lack, with credentials that are not available there.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # gcsfs would log a traceback for errors that become one line here.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    import fsspec.config

    for protocol in ("gs", "gcs", "s3"):
        fsspec.config.conf[protocol] = {"use_listings_cache": False} | fsspec.config.conf.get(protocol, {})


@contextlib.contextmanager
def explained(where: object, done: str) -> Iterator[None]:
    """Turns every error of a library into UserError, "WHERE cannot be DONE: why".

    FileNotFoundError and FileExistsError pass unchanged, as for local files: callers handle them.
    """
    try:
        yield
    except (UserError, FileNotFoundError, FileExistsError):
        raise
    # The errors of gcsfs, s3fs, aiohttp, google-auth and botocore have no common base class.
    except Exception as error:
        raise UserError(f"{where} cannot be {done}: {reason_of(error)}") from error


@contextlib.contextmanager
def writing(where: object) -> Iterator[None]:
    """Like `explained`, for writing files: FileNotFoundError then means that the bucket does not exist."""
    try:
        with explained(where, "written"):
            yield
    except FileNotFoundError as error:
        raise UserError(f"{where} cannot be written: there is no such bucket") from error


def tried(act: Callable[[], T]) -> T:
    """Calls `act`, and retries it if the connection breaks. `act` must be safe to repeat.

    The libraries retry single requests themselves, for example while a bucket is busy, but not every kind of request.
    """
    for pause in _PAUSES:
        try:
            return act()
        except Exception as error:
            if not _is_broken(error):
                raise
        time.sleep(pause)
    return act()


def _is_broken(error: Exception) -> bool:
    """Whether it is an error of the connection. aiohttp, which is part of an extra, is recognized by name."""
    by_name = any(kind.__module__.startswith("aiohttp.") for kind in type(error).__mro__)
    return by_name or isinstance(error, ConnectionError | TimeoutError)


def reason_of(error: BaseException) -> str:
    """The message of an error, in one line."""
    text = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return in_one_line(text[:300]) or type(error).__name__
