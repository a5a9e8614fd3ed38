"""The common part of the benchmarks' commands: tyro parses the arguments, and a UserError is one line on stderr."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tyro

from xpsr_jax.errors import UserError

A = TypeVar("A")


def command_line(run: Callable[[A], int | None], arguments: type[A], description: str | None) -> int:
    """Runs a benchmark with the arguments of its command line. Returns the exit code: 1 after a UserError."""
    try:
        return run(tyro.cli(arguments, description=description)) or 0
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
