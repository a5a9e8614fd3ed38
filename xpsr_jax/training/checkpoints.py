"""Checkpoints of a run. Each holds all that a resumed run needs, and is saved atomically in the background."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from xpsr_jax import distributed
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.errors import UserError
from xpsr_jax.files import entries, remove_tree, resolved, without_patterns
from xpsr_jax.training.state import TrainState

# No item holds a random state: random numbers follow from the seed in `config` and the position in `data`.
STATE, DATA, CONFIG, LOG = ITEMS = ("state", "data", "config", "log")
# The last object that Orbax writes for a checkpoint in a bucket. On a disk it renames the finished folder instead.
_COMMITTED = "commit_success.txt"


class Damaged(UserError):
    """A checkpoint is incomplete or cannot be read."""


class Restored(NamedTuple):
    """The contents of a checkpoint, except its settings.

    Attributes:
      state: the state of training, in its shardings.
      log: the `log` that `Checkpoints.save` received.
    """

    state: TrainState
    log: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. A context manager, which waits at its end for unfinished writing.

    Args:
      folder: the checkpoints' folder; it is created if it is missing. Unfinished files of a killed process are removed.
      keep: the number of newest checkpoints to keep.
    """

    def __init__(self, folder: Path, *, keep: int):
        self._folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            # The path that Orbax gets for the folder.
            self._path = stack.enter_context(without_patterns(folder))
            if jax.process_count() > 1 and str(self._path) != str(resolved(folder)):
                raise UserError(f"{folder}: a run of several processes needs a path without the characters [ ] * ?")
            try:
                self._manager = ocp.CheckpointManager(
                    self._path,
                    item_names=ITEMS,
                    options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True),
                )
            # A bucket's errors reach us through Orbax as any type of exception.
            except Exception as error:
                if not isinstance(folder, BucketPath):
                    raise
                raise UserError(f"the checkpoints in {folder} cannot be listed ({_first_line(error)})") from error
            self._stack = stack.pop_all()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # If an exception ended the run, it matters more than a failed checkpoint.
        with self._stack, self._writing() if kind is None else contextlib.suppress(Exception):
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()  # Its threads would keep the process alive.

    def check_readable(self) -> None:
        """Writes a tiny checkpoint and reads it again, so that a bad folder is found before a run of days.

        Only the first process may call this. Raises UserError if a checkpoint in this folder cannot be read again.
        """
        numbers = {"numbers": np.arange(3)}
        # In its own folder, because Orbax removes unfinished folders beside the checkpoints in the background.
        probe = self._path / ".probe" / "0"
        try:
            remove_tree(self._folder / ".probe")
            probe.parent.mkdir()
            with ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=_alone()) as checkpointer:
                checkpointer.save(probe, args=ocp.args.StandardSave(numbers))
                restored = checkpointer.restore(probe, args=ocp.args.StandardRestore(numbers))
            if not np.array_equal(restored["numbers"], numbers["numbers"]):
                raise ValueError("other numbers came back")
        # A file system's errors reach us through Orbax as any type of exception.
        except Exception as error:
            raise UserError(
                f"a checkpoint in {self._folder} cannot be read again ({_first_line(error)}); name another folder"
            ) from error
        finally:
            remove_tree(self._folder / ".probe")

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        step: int | None = self._manager.latest_step()
        return step

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: TrainState, data: grain.DatasetIterator, record: dict[str, Any], log: dict[str, Any]
    ) -> None:
        """Saves a checkpoint, unless this step is saved already. Copies the state, then writes it in the background.

        Args:
          data: an iterator whose next batch is that of the next step. Its state is a count of batches, which is the
            same in every process. So the first process's state serves any number of processes.
          record: the run's settings as JSON (`resume.record`).
          log: steps that are not logged yet, as JSON (`Log.unlogged`).

        Raises UserError if this checkpoint or the previous one cannot be written, for example on a full disk.
        """
        if step == self.latest:
            return
        with self._writing():
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(data.get_state()),
                    config=ocp.args.JsonSave(record),
                    log=ocp.args.JsonSave(log),
                ),
            )
        if not saved:
            raise RuntimeError(f"step {step} was not saved; the newest checkpoint is of step {self.latest}")

    def check(self) -> None:
        """Raises UserError if writing in the background has failed. Costs nothing."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is written. Raises UserError if writing fails."""
        with self._writing():
            self._manager.wait_until_finished()

    def record(self, step: int) -> dict[str, Any]:
        """The `record` that `save` received for this step. Raises Damaged if it cannot be read."""
        record: dict[str, Any] = self._restore(step, config=ocp.args.JsonRestore())[CONFIG]
        return record

    def restore(self, step: int, abstract: TrainState, data: grain.DatasetIterator | None) -> Restored:
        """Restores the state of a step directly into the shardings of `abstract`. Sets `data` to the next step's batch.

        Raises Damaged if it cannot be restored.
        """
        json = ocp.args.JsonRestore()
        restored = self._restore(step, state=ocp.args.StandardRestore(abstract), data=json, log=json)
        if data is not None:
            try:
                data.set_state(restored[DATA])
            # A damaged state can make grain raise any type of exception.
            except Exception as error:
                raise self._damaged(step, error) from error
        return Restored(restored[STATE], restored[LOG])

    def put_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints into damaged/ beside this folder, so that their steps can be saved again."""
        for step in steps if distributed.is_first() else ():
            aside = self._folder.with_name("damaged") / str(step)
            aside.parent.mkdir(exist_ok=True)
            remove_tree(aside)
            (self._folder / str(step)).rename(aside)
        if steps:
            distributed.wait_for_all("damaged checkpoints are moved away")
            self._manager.reload()

    def _restore(self, step: int, **items: Any) -> Any:
        # Each process restores independently. Otherwise all would wait for one that finds the checkpoint damaged.
        options = ocp.CheckpointManagerOptions(
            read_only=True, create=False, save_interval_steps=0, multiprocessing_options=_alone()
        )
        try:
            with ocp.CheckpointManager(self._path, item_names=ITEMS, options=options) as manager:
                return manager.restore(step, args=ocp.args.Composite(**items))
        # Damaged files can make Orbax raise any type of exception.
        except Exception as error:
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> Damaged:
        return Damaged(
            f"the checkpoint {self._folder / str(step)} cannot be restored; it is damaged or incomplete "
            f"({_first_line(error)})"
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        # Errors of the file system and of Orbax's threads can have any type.
        except Exception as error:
            raise UserError(
                f"a checkpoint cannot be written to {self._folder} ({_first_line(error)}). "
                + _last_complete(self._folder)
            ) from error


def _alone() -> ocp.options.MultiprocessingOptions:
    """Options for one process that works without the others."""
    this = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})


def is_full(error: OSError) -> bool:
    """Whether the system refused to write because a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def complete_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, oldest first."""
    steps = sorted(int(name) for name in entries(folder) if name.isdecimal())
    return [step for step in steps if not isinstance(folder, BucketPath) or (folder / str(step) / _COMMITTED).is_file()]


def _last_complete(folder: Path) -> str:
    """Says what the same command will do after a checkpoint could not be written."""
    if steps := complete_steps(folder):
        return f"The checkpoint of step {steps[-1]} is complete; the same command resumes from there"
    return "There is no earlier checkpoint; the same command starts again"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
