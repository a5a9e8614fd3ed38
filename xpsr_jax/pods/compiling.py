"""Compiles a lowered program for a pod: shows that time passes, and counts what the partitioner complains of."""

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
    """The compiled program, and how often the partitioner rematerialised a tensor against its will.

    Progress goes to standard error, and after it whatever the compiler had to say.

    Args:
      effort: "quick" compiles in a fraction of the time. Programs are a little slower and larger then.
      what: is compiled, for the progress.
    """
    with captured_stderr() as (said, terminal), _elapsed(what, terminal):
        compiled = lowered.compile(compiler_options=options(effort))
    return compiled, said[0].count(COMPLAINT)


def options(effort: Effort, flags: Mapping[str, bool | int] = TPU_FLAGS) -> dict[str, Any]:
    """What the compiler is told."""
    if effort == "default":
        return dict(flags)
    return {**flags, "exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}


@contextlib.contextmanager
def captured_stderr() -> Iterator[tuple[list[str], TextIO]]:
    """Catches what is written to file descriptor 2, by libraries too.

    Yields a list, which holds it at the end (when it is also passed on), and the real standard error.
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
    """Says what is done and for how long: in one line on a terminal, else in a line every half minute."""
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
    """Where the report of a program is kept; None without a cache (`machine.cache_folder`).

    Its name is a hash of the facts, of this package's source and of the versions that compile.
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
    """What was kept, None if there is nothing (or nothing that can be read)."""
    with contextlib.suppress(UserError):
        return read_json(path) if path else None
    return None


def write_cached(path: Path | None, data: dict[str, Any]) -> None:
    """Keeps a report for `read_cached`, as JSON; nothing without a path."""
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
