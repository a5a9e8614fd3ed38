"""A trace of some steps, for `tensorboard` or https://ui.perfetto.dev."""

from collections.abc import Callable
from pathlib import Path

import jax

# The first step compiles, and the second still waits for it.
_SKIPPED = 2


class Profiler:
    """Traces `steps` steps of a run that starts after the step `first`.

    A context manager. Leaving it ends a trace that is still running.
    """

    def __init__(self, folder: Path, *, first: int, steps: int, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._begin, self._end = first + _SKIPPED, first + _SKIPPED + steps
        self._tracing = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def after(self, step: int, result: object) -> None:
        """Must be called after each step, with the step's result."""
        if step == self._begin < self._end:
            jax.block_until_ready(result)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        elif step == self._end and self._tracing:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            self._say(f"trace of steps {self._begin + 1} to {self._end} in {self._folder}")
