"""What a run records of its settings, and which of them may differ when it is resumed."""

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

# Of what a checkpoint holds and how. A checkpoint of another is refused.
SCHEMA = 1

# Patterns of the fields that may change, and what such fields decide. A change of any other field would make it another
# run. The base may be in another folder, but must be the same: its fingerprints are compared.
MAY_CHANGE: tuple[tuple[str, str], ...] = (
    (r"name|run", "what it is called"),
    (r"steps", "how long it is; a cosine ends at the last step, so it is bent as a whole"),
    (r"optimizer\.(learning_rate|schedule|warmup)", "how fast it learns"),
    (r"mesh\..*|accumulation", "how it is shared out among devices"),
    (r"precision\.(attention|remat)", "how it is computed"),
    (r"images\.(folder|captions|lr_captions|on_error|cache)|networks\.(base|first_stage)", "where things are"),
    (r"data\.(embeddings|workers|threads|prefetch)", "how the data come"),
    (r"log_every|checkpoint_every|keep|validation\..*|profile|wandb", "how often and what it shows and saves"),
    (r"sampling\..*|note", "what the exported model says"),
)


def record(config: Config, *, photographs: int, base: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The config as JSON, and what else must stay the same.

    Args:
      photographs: their number, which decides their order.
      base: `fingerprints.fingerprints` of what the run begins from.
    """
    settings = as_json(dataclasses.asdict(config))
    settings |= {"schema": SCHEMA, "photographs": photographs}
    return settings | ({"base": dict(base)} if base is not None else {})


class Resumed(NamedTuple):
    """Where a run goes on.

    Attributes:
      step: that was done last.
      state: after it.
      log: as `Checkpoints.save` was given it.
      record: the run's settings then.
      notes: a line for each thing to be told: what changed since, which checkpoints were skipped and why.
    """

    step: int
    state: TrainState
    log: Mapping[str, Any]
    record: Mapping[str, Any]
    notes: list[str]


def newest(
    checkpoints: Checkpoints, now: Mapping[str, Any], abstract: TrainState, data: grain.DatasetIterator
) -> Resumed | None:
    """The newest checkpoint that is whole, in every process; None if there are none. Sets `data` to its next batch.

    Newer ones that are damaged are put aside, into the folder damaged/ beside theirs.

    Args:
      now: the run's settings, `record`.

    Raises:
      UserError: the settings differ where they may not; no checkpoint is whole.
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
            notes = [f"passed over: {problem}" for problem in damaged.values()]
            notes += [f"changed since: {line}" for line in differences]
            return Resumed(step, restored.state, restored.log, before, notes)
        damaged[step] = problem
    if damaged:
        raise UserError("; ".join(damaged.values()) + ". No checkpoint is whole: begin anew under another --name")
    return None


def config_of(record: Mapping[str, Any]) -> Config:
    """The config that a record was made of. Fields that exist no more are ignored.

    Raises UserError naming the fields whose values are wrong.
    """
    # Of a time when training used no first stage, whatever the base has.
    networks = {"first_stage": "none"} | record.get("networks", {})
    return from_json(Config, {**record, "networks": networks}, "this run's settings", unknown="ignore")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each field that differs and may, by `MAY_CHANGE`. Fields that only one record has are ignored.

    Raises:
      UserError: others differ; names them with both values. Or `before` is of another schema.
    """
    check_schema(before)
    old, new = dict(_flat(before)), dict(_flat(now))
    lines = {
        name: f"{name}: was {old[name]!r}, is {new[name]!r}" for name in new if name in old and old[name] != new[name]
    }
    if refused := [line for name, line in lines.items() if not may_change(name)]:
        raise UserError(
            f"this run cannot go on with other settings ({'; '.join(refused)}). "
            "Set them back, or start another run under another --name"
        )
    return list(lines.values())


def check_base(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError if a network of the base is another than when the run began; its folder may have moved."""
    # Older runs knew no first stage.
    base = {"first_stage": ""} | before.get("base", {})
    changes({"schema": SCHEMA, "base": base}, {"schema": SCHEMA, "base": now["base"]})


def may_change(name: str) -> bool:
    """Whether a field may differ when a run goes on."""
    return any(re.fullmatch(pattern, name) for pattern, _ in MAY_CHANGE)


def check_schema(record: Mapping[str, Any], where: object = "this run's checkpoint") -> None:
    """Raises UserError unless a checkpoint with this record is one that this version of the package can read."""
    if record.get("schema") != SCHEMA:
        raise UserError(
            f"{where} is of schema {record.get('schema')}, but this version of xpsr_jax reads and writes schema "
            f"{SCHEMA}; go on with the version that wrote it, or begin anew under another --name"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
