"""Checkpoints of a run: trained state, data position and settings together, saved in the background, all or nothing."""

from pathlib import Path
from typing import Any

import grain
import orbax.checkpoint as ocp

from xpsr_jax.errors import UserError
from xpsr_jax.training.state import TrainState

ITEMS = ("state", "data", "config")


class Checkpoints:
    """The checkpoints of one run, newest last; a context manager that waits for what is being written.

    Args:
      folder: exists or can be made.
      keep: newest checkpoints kept.
    """

    def __init__(self, folder: Path, *, keep: int):
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            item_names=ITEMS,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest step that was saved whole."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: grain.DatasetIterator, record: dict[str, Any]) -> None:
        """Saves, unless this step is saved already. The state is copied before this returns, then written.

        Args:
          data: is at the batch of the next step.
          record: JSON; `resume.record`.
        """
        if step == self.latest:
            return
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=grain.checkpoint.CheckpointSave(data),
                config=ocp.args.JsonSave(record),
            ),
        )
        if not saved:
            raise RuntimeError(f"step {step} was not saved; the newest checkpoint is that of step {self.latest}")

    def wait(self) -> None:
        """Until everything is written."""
        self._manager.wait_until_finished()

    def record(self, step: int) -> dict[str, Any]:
        """What was given to `save` as `record`. Raises UserError if it cannot be read."""
        return self._restore(step, config=ocp.args.JsonRestore())["config"]

    def restore(self, step: int, abstract: TrainState, data: grain.DatasetIterator | None) -> TrainState:
        """The state of a step, straight into the shardings of `abstract`; `data` is set to the next step's batch.

        Raises UserError if it cannot be restored.
        """
        items: dict[str, Any] = {"state": ocp.args.StandardRestore(abstract)}
        if data is not None:
            items["data"] = grain.checkpoint.CheckpointRestore(data)
        return self._restore(step, **items)["state"]

    def _restore(self, step: int, **items: Any) -> Any:
        """Raises UserError if the checkpoint is damaged; it is never passed over in silence for an older one."""
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        # Orbax raises whatever the damaged part of its many files leads to.
        except Exception as error:
            older = [other for other in self._manager.all_steps() if other < step]
            before = f"step {max(older)}" if older else "the beginning"
            reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
            raise UserError(
                f"the checkpoint {self._folder / str(step)} cannot be restored: damaged or incomplete ({reason}). "
                f"Delete that folder, and the same command goes on from {before}"
            ) from error
