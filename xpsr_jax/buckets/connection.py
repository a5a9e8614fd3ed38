"""The file systems of buckets: fsspec's, with what they say when something is wrong in one line."""

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

# Seconds before something is tried again.
_PAUSES = (0.5, 2.0, 8.0)
# What serves each scheme, and the packages that it needs.
PACKAGES = {"gs": ("gcsfs",), "s3": ("s3fs",)}


def check_installed(scheme: str) -> None:
    """Raises UserError unless buckets of this scheme can be reached. Imports nothing."""
    if any(importlib.util.find_spec(name) is None for name in PACKAGES[scheme]):
        raise UserError(f'{scheme}:// needs an extra that is not installed: pip install "xpsr-jax[bucket]"')


def filesystem(scheme: str) -> "AbstractFileSystem":
    """What reads and writes buckets of a scheme; one for all threads of a process. Raises UserError."""
    return _filesystem(scheme, os.getpid())  # what a parent process had is of no use to a child


@functools.cache
def _filesystem(scheme: str, _process: int) -> "AbstractFileSystem":
    check_installed(scheme)
    configure()
    import fsspec

    with explained(f"{scheme}://", "reached"):
        return fsspec.filesystem(scheme)


@functools.cache
def configure() -> None:
    """How everybody in this process reaches buckets, Orbax included, which asks fsspec as well.

    What a bucket holds is not remembered: other processes write to it.
    """
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        # gcsfs asks a service that emulators do not have, by way of credentials that nobody has there.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # It would show a traceback of what becomes one line here.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    import fsspec.config

    for protocol in ("gs", "gcs", "s3"):
        fsspec.config.conf[protocol] = {"use_listings_cache": False} | fsspec.config.conf.get(protocol, {})


@contextlib.contextmanager
def explained(where: object, done: str) -> Iterator[None]:
    """Whatever a library raises becomes UserError, "WHERE cannot be DONE: why".

    FileNotFoundError and FileExistsError pass, as from a local file: callers know what they mean.
    """
    try:
        yield
    except (UserError, FileNotFoundError, FileExistsError):
        raise
    # gcsfs, s3fs, aiohttp, google-auth and botocore have errors of their own, without a common base.
    except Exception as error:
        raise UserError(f"{where} cannot be {done}: {reason_of(error)}") from error


@contextlib.contextmanager
def writing(where: object) -> Iterator[None]:
    """`explained` for what makes files: that something is not there means that there is no such bucket."""
    try:
        with explained(where, "written"):
            yield
    except FileNotFoundError as error:
        raise UserError(f"{where} cannot be written: there is no such bucket") from error


def tried(act: Callable[[], T]) -> T:
    """Does what may be done twice, and does it again if the connection breaks.

    The libraries try single requests again, while a bucket is busy for example, but not all kinds of them.
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
    """Whether it is of the connection. By name: aiohttp is part of the extra."""
    by_name = any(kind.__module__.startswith("aiohttp.") for kind in type(error).__mro__)
    return by_name or isinstance(error, ConnectionError | TimeoutError)


def reason_of(error: BaseException) -> str:
    """What an error says, in one line."""
    text = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return in_one_line(text[:300]) or type(error).__name__
