"""Reading and writing the `config.json` files of diffusers and transformers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def read_config(
    cls: type[T], data: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], ignored: frozenset[str] = frozenset()
) -> T:
    """Makes the frozen dataclass `cls` of a config.json.

    `fixed` lists the keys whose values the network does not vary, each with the values it accepts; keys in `ignored`,
    and those that begin with "_", say nothing about the architecture. Raises ValueError naming every key that is
    unknown or has a value that is not supported.
    """
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values, problems = {}, []
    for key, value in data.items():
        if key in names:
            values[key] = tuple(value) if isinstance(value, list) else value
        elif key in fixed:
            if value not in fixed[key]:
                problems.append(f"{key}={value!r} (supported: {', '.join(map(repr, fixed[key]))})")
        elif not key.startswith("_") and key not in ignored:
            problems.append(f"{key}={value!r} (unknown key)")
    if problems:
        raise ValueError(f"{cls.__name__} cannot be made of this config.json: " + "; ".join(problems))
    return cls(**values)


def write_config(config: Any, class_name: str, fixed: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The config.json of `config`: its fields, and the first accepted value of each fixed key."""
    fields = {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(config).items()
    }
    return {"_class_name": class_name, **{key: values[0] for key, values in fixed.items()}, **fields}


def per_level(value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    """One value a level, from one for all or a sequence of them."""
    values = (value,) * levels if isinstance(value, int) else tuple(value)
    if len(values) != levels:
        raise ValueError(f"expected {levels} values, one a level, got {values}")
    return values
