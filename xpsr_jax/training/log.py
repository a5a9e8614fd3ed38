"""What a run says: its terms to the terminal, to metrics.jsonl and to TensorBoard, pictures to TensorBoard."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, UInt8
from tensorboardX import SummaryWriter
from tqdm import tqdm

from xpsr_jax.errors import UserError
from xpsr_jax.weights.atomic import new_file


class Log:
    """The log of one run, a context manager. Only the first process writes.

    Args:
      run: the run's folder.
      first: step that the run starts from; what an earlier run logged after it is removed.
      batch_size: images a step.
    """

    def __init__(self, run: Path, *, first: int, batch_size: int):
        self._run, self._first, self._batch_size = run, first, batch_size
        self._writes = jax.process_index() == 0
        self._unread: list[tuple[int, Mapping[str, Array], Int[np.ndarray, b]]] = []
        self._read: list[dict[str, float]] = []
        # Since when steps are timed, and how many were: not the first one, which compiles.
        self._since: float | None = None
        self._timed = 0

    def __enter__(self) -> "Log":
        if self._writes:
            file = self._run / "metrics.jsonl"
            with new_file(file) as temporary:
                temporary.write_text("".join(_lines_until(file, self._first)))
            self._metrics = file.open("a", buffering=1)
            self._board = SummaryWriter(str(self._run / "tensorboard"), purge_step=self._first + 1)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._writes:
            self._board.close()
            self._metrics.close()

    def say(self, text: str) -> None:
        if self._writes:
            tqdm.write(text)

    def add(self, step: int, terms: Mapping[str, Array], samples: Int[np.ndarray, "b"]) -> None:
        """Takes a step's terms and reads those of the step before: the host is one step ahead of the devices, not more.

        Args:
          samples: positions of the step's samples in the data, for `settle`'s error.

        Raises: as `settle`.
        """
        self.settle()
        self._unread.append((step, terms, samples))

    def settle(self) -> None:
        """Waits for the steps that were added. Raises UserError where the loss or a gradient is no longer a number."""
        for step, terms, samples in self._unread:
            values = {name: float(value) for name, value in jax.device_get(terms).items()}
            for name in ("loss", "gradient_norm"):
                if not math.isfinite(values[name]):
                    raise UserError(
                        f"the {name} became {values[name]} at step {step} (samples {', '.join(map(str, samples))}); "
                        "the last checkpoint is kept. Lower the learning rate, then start the same command again"
                    )
            self._read.append(values)
            if self._since is None:
                self._since = time.monotonic()
            else:
                self._timed += 1
        self._unread.clear()

    def scalars(self, step: int) -> dict[str, float]:
        """Writes and returns the means since the last call."""
        self.settle()
        means = {name: float(np.mean([values[name] for values in self._read])) for name in self._read[0]}
        now = time.monotonic()
        if self._since is not None and self._timed:
            means["images_per_second"] = self._batch_size * self._timed / (now - self._since)
        self._since, self._timed, self._read = now, 0, []
        if self._writes:
            for name, value in means.items():
                self._board.add_scalar(name, value, step)
            self._metrics.write(json.dumps({"step": step} | means) + "\n")
            shown = (n for n in means if "_" not in n or n == "images_per_second")
            self.say(f"{step}: " + ", ".join(f"{name} {means[name]:.4g}" for name in shown))
        return means

    def pictures(self, step: int, pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        for name, picture in pictures.items() if self._writes else ():
            self._board.add_image(name, picture, step, dataformats="HWC")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile does not count for images_per_second."""
        began = time.monotonic()
        yield
        if self._since is not None:
            self._since += time.monotonic() - began


def _lines_until(file: Path, step: int) -> Iterator[str]:
    """The whole lines of an earlier log up to a step."""
    for line in file.read_text().splitlines(keepends=True) if file.exists() else ():
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            yield line
