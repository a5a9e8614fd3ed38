"""Checkpoints of a run: trained state, data position and config together, written in the background, whole or not at all."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from xpsr_jax.config import Config
from xpsr_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run, newest last; a context manager that waits for what is being written."""

    def __init__(self, folder: Path, *, keep: int):
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            item_names=("state", "data", "config"),
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

    def save(self, step: int, state: TrainState, data: grain.DatasetIterator, config: Config) -> None:
        """Saves, unless this step is saved already. The data iterator must be at the batch of the next step."""
        if step == self.latest:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=grain.checkpoint.CheckpointSave(data),
                config=ocp.args.JsonSave(json.loads(json.dumps(dataclasses.asdict(config), default=str))),
            ),
        )

    def restore(self, step: int, state: TrainState, data: grain.DatasetIterator | None) -> TrainState:
        """The state of a step, in the shardings of `state` (arrays or shapes with shardings); `data` is set to the batch of the next step."""
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        items: dict[str, Any] = {"state": ocp.args.StandardRestore(shapes)}
        if data is not None:
            items["data"] = grain.checkpoint.CheckpointRestore(data)
        return self._manager.restore(step, args=ocp.args.Composite(**items))["state"]
