"""The log of a run: to the terminal, to files, to TensorBoard and, optionally, to Weights & Biases."""

import contextlib
import datetime
import importlib
import importlib.util
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

from xpsr_jax import distributed
from xpsr_jax.errors import UserError, printable, say
from xpsr_jax.files import write_text
from xpsr_jax.json_files import read_json_lines

_README = """\
A training run of XPSR. If it was stopped, the same command resumes it.

config.json     all settings
log.txt         the messages of the terminal
metrics.jsonl   one line per logging interval (every term of the loss, the learning rate) and one per validation
losses.png      the same as curves (written at the end)
tensorboard/    the same, and the pictures: tensorboard --logdir .
samples/        validation pictures: LR, restored, original; and the predictions of the constraint's heads
checkpoints/    the newest checkpoints, from which the run resumes
profile/        a trace of some steps, if --profile was set
model/          the trained model (written at the end): xpsr restore PHOTO --model .../model
failed/         after a step whose loss was NaN or infinite: a checkpoint of the state before that step
damaged/        checkpoints that could not be read and were skipped
"""


class NotANumber(Exception):
    """A step's loss or gradient is NaN or infinite.

    Attributes:
      step: the number of the failed step.
      samples: the positions in the data of this process's part of its batch.
    """

    def __init__(self, name: str, value: float, step: int, samples: Int[np.ndarray, "b"]):
        super().__init__(f"the {name} became {value} at step {step}")
        self.step, self.samples = step, samples


class Log:
    """The log of one run, a context manager. Only the first process writes.

    Args:
      run: the run's folder.
      first: the step that the run starts from. Lines that an earlier run logged after this step are removed.
      unlogged: the earlier run's `unlogged` after this step; None: nothing.
      steps: the last step of the run.
      batch_size: images per step.
      wandb: the project of Weights & Biases to log to; None: not used.
      record: the run's settings for Weights & Biases.
    """

    def __init__(
        self,
        run: Path,
        *,
        first: int,
        unlogged: Mapping[str, Any] | None = None,
        steps: int,
        batch_size: int,
        wandb: str | None = None,
        record: Mapping[str, Any] | None = None,
    ):
        self._run, self._first, self._steps, self._batch_size = run, first, steps, batch_size
        self._wandb, self._record = wandb, record
        self._writes = distributed.is_first()
        self._unread: list[tuple[int, Mapping[str, Array], Int[np.ndarray, b]]] = []
        # Sums of the terms since the last line, and the number of steps in them.
        self._sums: dict[str, float] = dict(unlogged["sums"]) if unlogged else {}
        self._summed: int = unlogged["steps"] if unlogged else 0
        # Start of the timing, and the number of timed steps. The first step is not timed, because it compiles.
        self._since: float | None = None
        self._timed = 0
        # Steps whose validation scores an earlier run has logged.
        self._validated: set[int] = set()

    def __enter__(self) -> "Log":
        self._bar = tqdm(
            initial=self._first,
            total=self._steps,
            unit="step",
            dynamic_ncols=True,
            # Without a terminal the lines of `scalars` are enough.
            disable=None if self._writes else True,
        )
        if self._writes:
            write_text(_README, self._run / "README.md")
            self._text = (self._run / "log.txt").open("a", buffering=1, encoding="utf-8")
            self._online = _open_wandb(self._wandb, self._run, self._record) if self._wandb else None
            file = self._run / "metrics.jsonl"
            kept = list(read_metrics(file, until=self._first)) if file.exists() else []
            self._validated = {line["step"] for line in kept if is_validation(line)}
            write_text("".join(json.dumps(line) + "\n" for line in kept), file)
            self._metrics = file.open("a", buffering=1)
            self._board = SummaryWriter(str(self._run / "tensorboard"), purge_step=self._first + 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._writes:
            if self._online is not None:
                self._online.finish()
            self._board.close()
            self._metrics.close()
            self._text.close()

    def say(self, text: str) -> None:
        """Writes a line to the terminal and, with the time, to log.txt."""
        if self._writes:
            say(text)
            now = datetime.datetime.now().isoformat(" ", "seconds")
            self._text.write(f"{now} {printable(text)}\n")

    def flush(self) -> None:
        """Writes buffered TensorBoard data to the file. May wait forever on a full disk."""
        if self._writes:
            self._board.flush()

    @property
    def unlogged(self) -> dict[str, Any]:
        """The steps since the last line, as JSON. With it a resumed run writes the same lines."""
        return {"sums": self._sums, "steps": self._summed}

    def add(self, step: int, terms: Mapping[str, Array], samples: Int[np.ndarray, "b"]) -> None:
        """Adds a step's terms and reads those of the previous step. So the host is at most one step ahead of devices.

        Args:
          samples: the positions in the data of this process's part of the batch, for `settle`'s error.

        Raises: as `settle`.
        """
        self.settle()
        self._unread.append((step, terms, samples))
        self._bar.update()

    def settle(self) -> None:
        """Waits for the steps that were added. Raises NotANumber if a loss or a gradient is NaN or infinite."""
        for step, terms, samples in self._unread:
            values = {name: float(value) for name, value in jax.device_get(terms).items()}
            for name in ("loss", "gradient_norm"):
                if not math.isfinite(values[name]):
                    raise NotANumber(name, values[name], step, samples)
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
            self._summed += 1
            if self._since is None:
                self._since = time.monotonic()
            else:
                self._timed += 1
        self._unread.clear()

    def scalars(self, step: int, **also: float) -> dict[str, float]:
        """Writes and returns the mean of every term since the last call, together with the values of `also`."""
        self.settle()
        means = {name: total / self._summed for name, total in self._sums.items()} | also
        now = time.monotonic()
        if self._since is not None and self._timed:
            means["images_per_second"] = self._batch_size * self._timed / (now - self._since)
        self._since, self._timed, self._sums, self._summed = now, 0, {}, 0
        if self._writes:
            self._write(step, means)
            shown = ", ".join(f"{name} {means[name]:.4g}" for name in means if "_" not in name)
            self._bar.set_postfix_str(shown)
            self.say(f"{step}: {shown}{self._speed(step, means.get('images_per_second'))}")
        return means

    def _speed(self, step: int, images_per_second: float | None) -> str:
        if not images_per_second:
            return ""
        left = datetime.timedelta(seconds=round((self._steps - step) * self._batch_size / images_per_second))
        return f"; {images_per_second:.4g} images/s, {left} to go"

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        # This write comes first. On a full disk it raises an error, but TensorBoard's writer waits for its dead thread.
        self._metrics.write(json.dumps({"step": step} | dict(values)) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._online is not None:
            self._online.log(dict(values), step=step)

    def validation(
        self, step: int, pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]], scores: Mapping[str, float]
    ) -> None:
        """Logs a validation: its pictures, and its scores on a separate line."""
        if not self._writes:
            return
        for name, picture in pictures.items():
            self._board.add_image(name, picture, step, dataformats="HWC")
            if self._online is not None:
                self._online.log({name: importlib.import_module("wandb").Image(picture)}, step=step)
        if scores:
            self._write(step, scores)
            shown = (f"{name.removeprefix('validation_')} {value:.4g}" for name, value in scores.items())
            self.say(f"{step}: validation {', '.join(shown)}")

    def lacks_validation(self, step: int) -> bool:
        """Whether an earlier run ended between its step `first` and that step's validation. All processes must call."""
        return not distributed.all_agree(step in self._validated or not self._writes)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count for images_per_second."""
        began = time.monotonic()
        yield
        if self._since is not None:
            self._since += time.monotonic() - began


def check_wandb(project: str | None) -> None:
    """Raises UserError if Weights & Biases is wanted but not installed. Called before anything is loaded."""
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(f"--wandb {project} needs Weights & Biases: pip install wandb, then wandb login")


def _open_wandb(project: str | None, run: Path, record: Mapping[str, Any] | None) -> Any:
    """Opens a run with the folder's name. An existing run with this name is continued."""
    wandb = importlib.import_module("wandb")
    return wandb.init(
        project=project, id=run.name, name=run.name, resume="allow", dir=str(run), config=dict(record or {})
    )


def is_validation(line: Mapping[str, float]) -> bool:
    """Whether a line of metrics.jsonl is from a validation. The other lines are from training steps."""
    return any(name.startswith("validation_") for name in line)


def read_metrics(file: Path, *, until: int | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl, up to a step if one is given.

    An incomplete last line, left by a killed process, is skipped.

    Raises UserError with the line's number if a line is not valid JSON, has no step, or has a value that is not a
    number.
    """
    for where, line in read_json_lines(file, cut_off="skip", allow_nan=True):
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            raise UserError(f"{where} is not a line of a training log: it has no step")
        for name, value in line.items():
            if type(value) not in (int, float):
                raise UserError(f"{where}: {name} must be a number, not {str(value)[:60]}")
        if until is None or line["step"] <= until:
            yield line
