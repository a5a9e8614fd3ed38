"""What a run records of its settings, and which of them may differ when it is resumed."""

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xpsr_jax.config import Config
from xpsr_jax.errors import UserError
from xpsr_jax.training.structure import Structure
from xpsr_jax.weights.networks import NETWORKS, Network, checked, open_folder
from xpsr_jax.weights.tensors import contiguous

# Fields that may change: they say how long, how fast, how often, where or how it is shown, not what is trained and on
# what. Anything else would make it another run. The base may be elsewhere: its fingerprints are compared.
MAY_CHANGE = re.compile(
    r"name|run|steps|note|networks\.base|log_every|checkpoint_every|keep|profile|wandb|accumulation"
    r"|images\.(folder|captions|lr_captions|cache)|data\.(embeddings|workers|threads|prefetch)"
    r"|mesh\..*|validation\..*|sampling\..*|precision\.(attention|remat)|optimizer\.(learning_rate|schedule|warmup)"
)


def record(config: Config, *, photographs: int, base: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The config as JSON, and what else must stay the same.

    Args:
      photographs: their number, which decides their order.
      base: `fingerprints` of what the run begins from.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return settings | {"photographs": photographs} | ({"base": dict(base)} if base is not None else {})


def fingerprints(structure: Structure) -> dict[str, str]:
    """SHA-256 of each network of the base model, over its configuration and all its tensors; "" where it has none.

    It is the same in whatever format the base is.
    """
    return {
        name: fingerprint(NETWORKS[name], structure.sources[name]) if name in structure.sources else ""
        for name in NETWORKS
    }


def config_of(record: Mapping[str, Any]) -> Config:
    """The config that a record was made of. Fields that exist no more are passed over."""
    return _from_json(Config, record)


def fingerprint(network: Network, folder: Path) -> str:
    """`fingerprints` of one network in its folder."""
    config, tensors = checked(network, open_folder(network, folder))
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for path in sorted(tensors):
        array = contiguous(tensors[path].read())
        digest.update(f"{path} {array.dtype.name} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _from_json(kind: Any, value: Any) -> Any:
    """A JSON value as the type hint says: dataclasses, tuples and paths, and what JSON has anyway."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _from_json(hints[name], each) for name, each in value.items() if name in hints})
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [each for each in typing.get_args(kind) if each is not type(None)]
        return None if value is None else _from_json(_chosen(kinds, value), value)
    if isinstance(value, list):
        inner = [each for each in typing.get_args(kind) if each is not Ellipsis]
        if len(inner) == len(value) and Ellipsis not in typing.get_args(kind):
            return tuple(_from_json(each, item) for each, item in zip(inner, value, strict=True))
        return tuple(_from_json(inner[0] if inner else Any, item) for item in value)
    return Path(value) if kind is Path else value


def _chosen(kinds: list[Any], value: Any) -> Any:
    """Of a union the member that a value is of: the tuple for a list, and of several dataclasses the one that fits."""
    if isinstance(value, list):
        return next(kind for kind in kinds if typing.get_origin(kind) is tuple)
    if isinstance(value, Mapping):
        classes = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        return next(kind for kind in classes if {field.name for field in dataclasses.fields(kind)} >= set(value))
    return next(kind for kind in kinds if typing.get_origin(kind) is not tuple)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each field that differs and may. Fields that only one of the records has are passed over.

    Raises:
      UserError: others differ; names them with both values.
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    lines = {
        name: f"{name}: was {old[name]!r}, is {new[name]!r}" for name in new if name in old and old[name] != new[name]
    }
    if refused := [line for name, line in lines.items() if not MAY_CHANGE.fullmatch(name)]:
        raise UserError(
            f"this run cannot go on with other settings ({'; '.join(refused)}). "
            "Set them back, or start another run under another --name"
        )
    return list(lines.values())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
