"""How a command begins. This module imports next to nothing, so that Ctrl-C is heard while the rest is imported."""

import importlib
from collections.abc import Callable, Sequence

INTERRUPTED = 130


def start(name: str, argv: Sequence[str] | None = None) -> int:
    """Imports `xpsr_jax.cli.NAME` and runs its `main`; returns the exit code, 130 after Ctrl-C at any moment.

    Args:
        argv: the words of its command line; None: those of this process.
    """
    try:
        main: Callable[[Sequence[str] | None], int] = importlib.import_module(f"xpsr_jax.cli.{name}").main
        return main(argv)
    except KeyboardInterrupt:  # before `main` listens, or once more after it was heard
        from xpsr_jax.errors import say

        say("interrupted", to_stderr=True)
        return INTERRUPTED
