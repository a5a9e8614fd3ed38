"""The recorded settings of a run, and which of them may change when it is resumed."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import grain

from xpsr_jax import distributed
from xpsr_jax.config import Config
from xpsr_jax.errors import UserError
from xpsr_jax.json_files import as_json
from xpsr_jax.serialisation import from_json
from xpsr_jax.training.checkpoints import Checkpoints, Damaged
from xpsr_jax.training.state import TrainState

# The version of the checkpoint format. Checkpoints with another version are refused.
SCHEMA = 1

# Patterns of the fields that may change, and what these fields control. A change of any other field would make it
# another run. The base's folder may change, but its networks must be the same: their fingerprints are compared.
MAY_CHANGE: tuple[tuple[str, str], ...] = (
    (r"name|run", "the name and the folder of the run"),
    (r"steps", "the length of the run; a cosine schedule ends at the last step, so the whole curve changes"),
    (r"optimizer\.(learning_rate|schedule|warmup)", "the learning rate"),
    (r"mesh\..*|accumulation", "how the work is divided among devices"),
    (r"precision\.(attention|remat)", "how it is computed"),
    (r"images\.(folder|captions|lr_captions|on_error|cache)|networks\.(base|first_stage)", "where files are"),
    (r"data\.(embeddings|workers|threads|prefetch)", "how the data are loaded"),
    (r"log_every|checkpoint_every|keep|validation\..*|profile|wandb", "what is logged and saved, and how often"),
    (r"sampling\..*|note", "defaults and note of the exported model"),
)


def record(config: Config, *, photographs: int, base: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The config as JSON, with the other facts that must not change in a run.

    Args:
      photographs: the number of photographs, which determines their order.
      base: `fingerprints.fingerprints` of the base model that the run starts from.
    """
    settings = as_json(dataclasses.asdict(config))
    settings |= {"schema": SCHEMA, "photographs": photographs}
    return settings | ({"base": dict(base)} if base is not None else {})


class Resumed(NamedTuple):
    """The point from which a run resumes.

    Attributes:
      step: the last finished step.
      state: the state after this step.
      log: the `log` that `Checkpoints.save` received.
      record: the run's settings at that time.
      notes: lines for the user: changed settings, and skipped checkpoints with the reason.
    """

    step: int
    state: TrainState
    log: Mapping[str, Any]
    record: Mapping[str, Any]
    notes: list[str]


def newest(
    checkpoints: Checkpoints, now: Mapping[str, Any], abstract: TrainState, data: grain.DatasetIterator
) -> Resumed | None:
    """The newest intact checkpoint, the same in every process; None if there is no checkpoint.

    Sets `data` to the next batch after it. Newer checkpoints that are damaged are moved into the folder damaged/ beside
    the checkpoints' folder.

    Args:
      now: the run's settings (`record`).

    Raises:
      UserError: settings differ that must not change, or all checkpoints are damaged.
    """
    damaged: dict[int, str] = {}
    for step in reversed(checkpoints.steps):
        found: tuple[Any, Any] | None = None
        problem = "another process cannot read it"
        try:
            before = checkpoints.record(step)
            differences = changes(before, now)
            found = before, checkpoints.restore(step, abstract, data)
        except Damaged as error:
            problem = str(error)
        if distributed.all_agree(found is not None) and found is not None:
            before, restored = found
            checkpoints.put_aside(list(damaged))
            notes = [f"skipped: {problem}" for problem in damaged.values()]
            notes += [f"changed since: {line}" for line in differences]
            return Resumed(step, restored.state, restored.log, before, notes)
        damaged[step] = problem
    if damaged:
        raise UserError("; ".join(damaged.values()) + ". No checkpoint is intact: start again with another --name")
    return None


def config_of(record: Mapping[str, Any]) -> Config:
    """The config that a record was made from. Fields that no longer exist are ignored.

    Raises UserError that names the fields with wrong values.
    """
    # Records without this field are from versions that used no first stage in training, even if the base had one.
    networks = {"first_stage": "none"} | record.get("networks", {})
    return from_json(Config, {**record, "networks": networks}, "this run's settings", unknown="ignore")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each field that differs and may change (`MAY_CHANGE`). Fields in only one record are ignored.

    Raises:
      UserError: other fields differ (the message names them with both values), or `before` has another schema.
    """
    check_schema(before)
    old, new = dict(_flat(before)), dict(_flat(now))
    lines = {
        name: f"{name}: was {old[name]!r}, is {new[name]!r}" for name in new if name in old and old[name] != new[name]
    }
    if refused := [line for name, line in lines.items() if not may_change(name)]:
        raise UserError(
            f"this run cannot resume with other settings ({'; '.join(refused)}). "
            "Set them back, or start another run with another --name"
        )
    return list(lines.values())


def check_base(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError if a network of the base has changed since the run began. The base's folder may have moved."""
    # Older runs have no entry for the first stage.
    base = {"first_stage": ""} | before.get("base", {})
    changes({"schema": SCHEMA, "base": base}, {"schema": SCHEMA, "base": now["base"]})


def may_change(name: str) -> bool:
    """Whether a field may differ when a run is resumed."""
    return any(re.fullmatch(pattern, name) for pattern, _ in MAY_CHANGE)


def check_schema(record: Mapping[str, Any], where: object = "this run's checkpoint") -> None:
    """Raises UserError unless this version of the package can read the checkpoint with this record."""
    if record.get("schema") != SCHEMA:
        raise UserError(
            f"{where} has schema {record.get('schema')}, but this version of xpsr_jax reads and writes schema "
            f"{SCHEMA}; resume with the version that wrote it, or start again with another --name"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
