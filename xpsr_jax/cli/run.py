"""What all commands have in common: how they end."""

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
from xpsr_jax.errors import UserError
from xpsr_jax.serialisation import check_fields

_A_BIT = 0.05  # seconds

# Called with the words of the command line, or with none for those of this process.
Main = Callable[..., int]


def command(*, interrupted: str, lower: str) -> Callable[[Callable[..., int | None]], Main]:
    """Makes a command's `main` of a function that takes the words of its command line and returns its exit code.

    Ctrl-C and SIGTERM raise KeyboardInterrupt where the function is; files being written are removed on its way out.
    What a person can put right is one line on stderr, "error: ...", and exit code 1. Every other error keeps its
    traceback.

    Args:
        interrupted: what to say after Ctrl-C or SIGTERM; the exit code is then 130.
        lower: what to lower when a device or this machine has no memory left.
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
                    where = out_of_memory(error)
                    if where is None:
                        raise
                    print(f"error: {where} is out of memory: {lower}", file=sys.stderr)
                    return 1

        return main

    return decorate


def check_options(arguments: object) -> None:
    """Raises UserError for an option that is outside of its field's range, or NaN or infinite."""
    check_fields(arguments, shown=lambda name: f"--{name.replace('_', '-')}")


def out_of_memory(error: Exception) -> str | None:
    """What has no memory left, if that is what an error says: "the device" or "this machine"; else None."""
    if isinstance(error, MemoryError):
        return "this machine"
    # Both by name: the libraries may not have been imported.
    kind, text = type(error).__name__, str(error)
    if kind == "JaxRuntimeError" and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text):
        return "the device"
    return "the device" if kind == "OutOfMemoryError" else None  # PyTorch's


@contextlib.contextmanager
def _prints_any_text() -> Iterator[None]:
    """What stdout or stderr has no encoding for is escaped: no work is lost because a name cannot be printed."""
    with contextlib.ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            # A program that calls `main` may have put something else in their place.
            if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="backslashreplace")
        yield


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """SIGTERM too raises KeyboardInterrupt, and both only where that does no harm."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before: dict[int, Any] = {signal.SIGTERM: signal.signal(signal.SIGTERM, _interrupt)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is to be ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, but in the middle of an import, or of JAX's part in collecting garbage, a bit later.

    Raised while jaxlib is being imported it can end in a crash; while garbage is collected Python drops it.
    """
    here = frame
    while here is not None:
        if here.f_code.co_filename.startswith("<frozen importlib") or here.f_code.co_name == "_xla_gc_callback":
            main = threading.main_thread().ident
            assert main is not None
            later = threading.Timer(_A_BIT, signal.pthread_kill, (main, number))
            later.daemon = True
            later.start()
            return
        here = here.f_back
    raise KeyboardInterrupt
