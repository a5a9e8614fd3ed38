"""Starts a command. This module imports almost nothing, so that Ctrl-C works while the rest is being imported."""

import importlib
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

INTERRUPTED = 130


def start(name: str, argv: Sequence[str] | None = None) -> int:
    """Imports `xpsr_jax.cli.NAME` and runs its `main`; returns the exit code, 130 after Ctrl-C at any time.

    Args:
        argv: the words of the command line; None: those of this process.
    """
    try:
        main: Callable[[Sequence[str] | None], int] = importlib.import_module(f"xpsr_jax.cli.{name}").main
        return main(argv)
    except BrokenPipeError:
        if not _is_closed(sys.stdout):
            raise
        # `xpsr ... --help | head` has closed stdout. With this, Python does not write to it again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:  # before `main` handles it, or a second time
        from xpsr_jax.errors import say

        say("interrupted", to_stderr=True)
        return INTERRUPTED


def _is_closed(stream: TextIO) -> bool:
    """Whether the reader of the stream has closed it."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
