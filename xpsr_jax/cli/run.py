"""The common part of all commands: errors, signals and exit codes."""

import contextlib
import functools
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from xpsr_jax.cli.start import INTERRUPTED
from xpsr_jax.errors import UserError, printable
from xpsr_jax.serialisation import check_fields

_RETRY_SECONDS = 0.05

# Called with the words of the command line, or without arguments for those of this process.
Main = Callable[..., int]


def command(*, interrupted: str, lower: str) -> Callable[[Callable[..., int | None]], Main]:
    """Makes a command's `main` from a function that takes the words of its command line and returns its exit code.

    Ctrl-C and SIGTERM raise KeyboardInterrupt in the function, so that incomplete files are removed. An error that the
    user can correct is printed as one line, "error: ...", and the exit code is 1. So is the system's refusal of a file.
    Other errors keep their traceback.

    Args:
        interrupted: message after Ctrl-C or SIGTERM. The exit code is then 130.
        lower: advice when a device or this machine is out of memory.
    """

    def decorate(function: Callable[..., int | None]) -> Main:
        @functools.wraps(function)
        def main(argv: Sequence[str] | None = None) -> int:
            with _prints_any_text():
                try:
                    with _signals_as_ctrl_c():
                        return function(argv) or 0
                except UserError as error:
                    print(f"error: {error}", file=sys.stderr)
                    return 1
                except KeyboardInterrupt:
                    print(interrupted, file=sys.stderr)
                    return INTERRUPTED
                except Exception as error:
                    if (where := out_of_memory(error)) is not None:
                        print(f"error: {where} is out of memory: {lower}", file=sys.stderr)
                    elif isinstance(error, OSError) and error.filename is not None:
                        print(f"error: {printable(error.filename)}: {error.strerror}", file=sys.stderr)
                    else:
                        raise
                    return 1

        return main

    return decorate


def check_options(arguments: object) -> None:
    """Raises UserError for an option that is out of range, NaN or infinite."""
    check_fields(arguments, shown=lambda name: f"--{name.replace('_', '-')}")


def out_of_memory(error: Exception) -> str | None:
    """Returns "the device" or "this machine" if the error means that it is out of memory, otherwise None."""
    if isinstance(error, MemoryError):
        return "this machine"
    # Compared by name, because the libraries may not be imported.
    kind, text = type(error).__name__, str(error)
    if kind == "JaxRuntimeError" and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text):
        return "the device"
    return "the device" if kind == "OutOfMemoryError" else None  # PyTorch's


@contextlib.contextmanager
def _prints_any_text() -> Iterator[None]:
    """Escapes characters that stdout or stderr cannot encode, so that a file name cannot end the work."""
    with contextlib.ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            # A program that calls `main` may have replaced the streams.
            if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="backslashreplace")
        yield


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt too, and delays both signals where they would do harm."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before: dict[int, Any] = {signal.SIGTERM: signal.signal(signal.SIGTERM, _interrupt)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt. During an import or JAX's garbage collection callback, raises it a little later.

    During the import of jaxlib, it can cause a crash. During garbage collection, Python ignores it.
    """
    here = frame
    while here is not None:
        if here.f_code.co_filename.startswith("<frozen importlib") or here.f_code.co_name == "_xla_gc_callback":
            main = threading.main_thread().ident
            assert main is not None
            later = threading.Timer(_RETRY_SECONDS, signal.pthread_kill, (main, number))
            later.daemon = True
            later.start()
            return
        here = here.f_back
    raise KeyboardInterrupt
