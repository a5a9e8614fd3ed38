"""Reading and writing the `config.json` files of diffusers and transformers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from xpsr_jax.errors import listed
from xpsr_jax.serialisation import Mismatch, structure

T = TypeVar("T")


@runtime_checkable
class Settings(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


# Keys for which diffusers accepts one value or a list with one per level. These networks need the same in all levels.
_ONE_FOR_ALL = ("transformer_layers_per_block", "layers_per_block", "cross_attention_dim", "only_cross_attention")


def read_config(
    cls: type[T], data: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], ignored: frozenset[str] = frozenset()
) -> T:
    """Makes the frozen dataclass `cls` from a config.json.

    Args:
      fixed: keys that are not fields of `cls`, each with the values that the network supports.
      ignored: keys without meaning for the architecture. Keys that begin with "_" are ignored too.

    Raises:
      ValueError: keys are unknown, or values are wrong or not supported; the message names every one.
    """
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values, problems = {}, []
    for key, value in data.items():
        if key in _ONE_FOR_ALL:
            value = _one_for_all(value, data.get("block_out_channels"))
        if key in names:
            values[key] = value
        elif key in fixed:
            if value not in fixed[key]:
                problems.append(f"{key}={value!r} (supported: {', '.join(map(repr, fixed[key]))})")
        elif not key.startswith("_") and key not in ignored:
            problems.append(f"{key}={value!r} (unknown key)")
    try:
        config = structure(cls, values)
    except Mismatch as mismatch:
        problems += mismatch.problems
    if problems:
        text = listed([problem[:300] for problem in problems], separator="; ")
        raise ValueError(f"{cls.__name__} cannot be made from this config.json: {text}")
    return config


def write_config(config: Settings, class_name: str, fixed: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The config.json of `config`: its fields, and the first accepted value of each fixed key."""
    fields = {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(config).items()
    }
    return {"_class_name": class_name, **{key: values[0] for key, values in fixed.items()}, **fields}


def per_level(value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    """One value per level, from one value for all levels or from a sequence."""
    values = (value,) * levels if isinstance(value, int) else tuple(value)
    if len(values) != levels:
        raise ValueError(f"expected {levels} values, one per level, got {values}")
    return values


def _one_for_all(value: Any, levels: Any) -> Any:
    """The common value of all levels. A list with different values is returned unchanged and refused later."""
    same = isinstance(value, list) and isinstance(levels, list) and len(value) == len(levels)
    return value[0] if same and value and all(each == value[0] for each in value) else value
