"""Checkpoints of a run: all that it needs to go on, saved together in the background, all or nothing."""

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

# The state's random numbers are in none of them: they follow from the seed in `config` and the position in `data`.
STATE, DATA, CONFIG, LOG = ITEMS = ("state", "data", "config", "log")
# What Orbax adds last to a checkpoint in a bucket. On a disk a checkpoint gets its name at its end.
_COMMITTED = "commit_success.txt"


class Damaged(UserError):
    """A checkpoint that is not whole, or cannot be read."""


class Restored(NamedTuple):
    """What a checkpoint holds beside its settings.

    Attributes:
      state: of training, in its shardings.
      log: what was given to `Checkpoints.save` as `log`.
    """

    state: TrainState
    log: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, newest last; a context manager that waits for what is being written.

    Args:
      folder: exists or can be made. What a killed process was writing there is removed.
      keep: newest checkpoints kept.
    """

    def __init__(self, folder: Path, *, keep: int):
        self._folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            # What Orbax knows the folder by.
            self._path = stack.enter_context(without_patterns(folder))
            if jax.process_count() > 1 and str(self._path) != str(resolved(folder)):
                raise UserError(f"{folder}: a run of several processes needs a path without the characters [ ] * ?")
            try:
                self._manager = ocp.CheckpointManager(
                    self._path,
                    item_names=ITEMS,
                    options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True),
                )
            # Orbax passes on whatever a bucket leads to.
            except Exception as error:
                if not isinstance(folder, BucketPath):
                    raise
                raise UserError(f"the checkpoints in {folder} cannot be looked at ({_first_line(error)})") from error
            self._stack = stack.pop_all()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # What ended the run says more than what became of its last checkpoint.
        with self._stack, self._writing() if kind is None else contextlib.suppress(Exception):
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()  # Its threads would keep the process alive.

    def check_readable(self) -> None:
        """Writes a checkpoint of a few bytes and reads it again: a run of days should not find out at its end.

        Raises UserError if what is saved in this folder cannot be read again. Called by the first process alone.
        """
        numbers = {"numbers": np.arange(3)}
        # In a folder of its own: Orbax removes what looks unfinished beside the checkpoints, in the background.
        probe = self._path / ".probe" / "0"
        try:
            remove_tree(self._folder / ".probe")
            probe.parent.mkdir()
            with ocp.Checkpointer(ocp.StandardCheckpointHandler(), multiprocessing_options=_alone()) as checkpointer:
                checkpointer.save(probe, args=ocp.args.StandardSave(numbers))
                restored = checkpointer.restore(probe, args=ocp.args.StandardRestore(numbers))
            if not np.array_equal(restored["numbers"], numbers["numbers"]):
                raise ValueError("other numbers came back")
        # Orbax raises whatever the file system leads to.
        except Exception as error:
            raise UserError(
                f"what is saved in {self._folder} cannot be read again ({_first_line(error)}); name another folder"
            ) from error
        finally:
            remove_tree(self._folder / ".probe")

    @property
    def latest(self) -> int | None:
        """The newest step that was saved whole."""
        step: int | None = self._manager.latest_step()
        return step

    @property
    def steps(self) -> list[int]:
        """Of all checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: TrainState, data: grain.DatasetIterator, record: dict[str, Any], log: dict[str, Any]
    ) -> None:
        """Saves, unless this step is saved already. The state is copied before this returns, then written.

        Args:
          data: is at the batch of the next step. Its state is a count of batches, the same in every process; so the
            first one's serves any number of processes.
          record: JSON; `resume.record`.
          log: JSON; what of this step and those before is not logged yet.

        Raises UserError if this or the checkpoint before it cannot be written, because the disk is full for example.
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
            raise RuntimeError(f"step {step} was not saved; the newest checkpoint is that of step {self.latest}")

    def check(self) -> None:
        """Raises UserError if something could not be written in the background. Costs nothing."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Until everything is written. Raises UserError if it cannot be."""
        with self._writing():
            self._manager.wait_until_finished()

    def record(self, step: int) -> dict[str, Any]:
        """What was given to `save` as `record`. Raises Damaged if it cannot be read."""
        record: dict[str, Any] = self._restore(step, config=ocp.args.JsonRestore())[CONFIG]
        return record

    def restore(self, step: int, abstract: TrainState, data: grain.DatasetIterator | None) -> Restored:
        """The state of a step, straight into the shardings of `abstract`; `data` is set to the next step's batch.

        Raises Damaged if it cannot be restored.
        """
        json = ocp.args.JsonRestore()
        restored = self._restore(step, state=ocp.args.StandardRestore(abstract), data=json, log=json)
        if data is not None:
            try:
                data.set_state(restored[DATA])
            # Grain raises whatever a state that is not one of its own leads to.
            except Exception as error:
                raise self._damaged(step, error) from error
        return Restored(restored[STATE], restored[LOG])

    def put_aside(self, steps: list[int]) -> None:
        """Moves checkpoints into the folder damaged/ beside this one: steps after the one to go on from come again."""
        for step in steps if distributed.is_first() else ():
            aside = self._folder.with_name("damaged") / str(step)
            aside.parent.mkdir(exist_ok=True)
            remove_tree(aside)
            (self._folder / str(step)).rename(aside)
        if steps:
            distributed.wait_for_all("damaged checkpoints are put aside")
            self._manager.reload()

    def _restore(self, step: int, **items: Any) -> Any:
        # Each process by itself: one that finds the checkpoint damaged would leave the others waiting for it.
        options = ocp.CheckpointManagerOptions(
            read_only=True, create=False, save_interval_steps=0, multiprocessing_options=_alone()
        )
        try:
            with ocp.CheckpointManager(self._path, item_names=ITEMS, options=options) as manager:
                return manager.restore(step, args=ocp.args.Composite(**items))
        # Orbax raises whatever the damaged part of its many files leads to.
        except Exception as error:
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> Damaged:
        return Damaged(
            f"the checkpoint {self._folder / str(step)} cannot be restored, it is damaged or incomplete "
            f"({_first_line(error)})"
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        # Orbax passes on whatever the file system or its own threads came upon.
        except Exception as error:
            raise UserError(
                f"a checkpoint cannot be written to {self._folder} ({_first_line(error)}). "
                f"{_whole(self._folder)}; the same command goes on from there"
            ) from error


def _alone() -> ocp.options.MultiprocessingOptions:
    """This process works by itself: no other is waited for."""
    this = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})


def is_full(error: OSError) -> bool:
    """Whether the system refused to write because a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def whole_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder that were written to their end, oldest first."""
    steps = sorted(int(name) for name in entries(folder) if name.isdecimal())
    return [step for step in steps if not isinstance(folder, BucketPath) or (folder / str(step) / _COMMITTED).is_file()]


def _whole(folder: Path) -> str:
    steps = whole_steps(folder)
    return f"The checkpoint of step {steps[-1]} is whole" if steps else "There is none before it"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
