"""Compiles a lowered program for a pod. Shows the elapsed time and counts the partitioner's warnings."""

import contextlib
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TextIO

import jax

from xpsr_jax.errors import UserError
from xpsr_jax.inference.compilation import TPU_FLAGS
from xpsr_jax.json_files import read_json, write_json
from xpsr_jax.machine import cache_folder

Effort = Literal["quick", "default"]
COMPLAINT = "Involuntary full rematerialization"


def compile_for_pod(lowered: jax.stages.Lowered, effort: Effort, *, what: str) -> tuple[jax.stages.Compiled, int]:
    """The compiled program, and the number of the partitioner's involuntary rematerialisations.

    The progress is written to standard error, followed by the compiler's messages.

    Args:
      effort: "quick" compiles in a fraction of the time; the program is then a little slower and larger.
      what: a text for the progress.
    """
    with captured_stderr() as (said, terminal), _elapsed(what, terminal):
        compiled = lowered.compile(compiler_options=options(effort))
    return compiled, said[0].count(COMPLAINT)


def options(effort: Effort, flags: Mapping[str, bool | int] = TPU_FLAGS) -> dict[str, Any]:
    """The compiler's options."""
    if effort == "default":
        return dict(flags)
    return {**flags, "exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}


@contextlib.contextmanager
def captured_stderr() -> Iterator[tuple[list[str], TextIO]]:
    """Captures everything that is written to file descriptor 2, including the output of libraries.

    Yields a list, which receives the captured text at the end, and the real standard error. At the end the text is also
    written to the real standard error.
    """
    said: list[str] = []
    sys.stderr.flush()
    real = os.dup(2)
    with os.fdopen(real, "w") as terminal, tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said, terminal
        finally:
            sys.stderr.flush()
            terminal.flush()
            os.dup2(real, 2)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
            terminal.write(said[0])


@contextlib.contextmanager
def _elapsed(what: str, terminal: TextIO, every: float = 1.0) -> Iterator[None]:
    """Shows the elapsed time of a task: in one line on a terminal, otherwise in a new line every half minute."""
    done, begin, live = threading.Event(), time.perf_counter(), terminal.isatty()
    start, end = ("\r", "") if live else ("", "\n")

    def show() -> None:
        while not done.wait(every if live else 30 * every):
            minutes, seconds = divmod(int(time.perf_counter() - begin), 60)
            terminal.write(f"{start}{what}: {minutes}:{seconds:02}{end}")
            terminal.flush()

    terminal.write(f"{what}; this takes minutes\n")
    terminal.flush()
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if live:
            terminal.write("\n")


def cache_file(*facts: object) -> Path | None:
    """The file for the report of a program; None without a cache (`machine.cache_folder`).

    Its name is a hash of the facts, of this package's source and of the versions of the libraries that compile.
    """
    folder = cache_folder()
    if folder is None:
        return None
    digest = hashlib.sha256(repr((facts, _versions())).encode())
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return folder / "preflight" / f"{digest.hexdigest()[:32]}.json"


def read_cached(path: Path | None) -> dict[str, Any] | None:
    """The stored report; None if it does not exist or cannot be read."""
    with contextlib.suppress(UserError):
        return read_json(path) if path else None
    return None


def write_cached(path: Path | None, data: dict[str, Any]) -> None:
    """Stores a report as JSON for `read_cached`. Does nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(data, path, indent=1)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
