"""Makes frozen dataclasses of settings from JSON. Types, ranges, unknown and missing fields give one error for all.

    Width = Annotated[int, Range(1, 65536)]

    @dataclass(frozen=True)
    class Settings:
        widths: Annotated[tuple[Width, ...], Length(1, 8)]

        def __post_init__(self) -> None:
            check_fields(self)

`from_json(Settings, {"widths": [0]}, "a.json")` raises "a.json: widths[0] must be from 1 to 65536, not 0".
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from xpsr_jax.buckets.paths import as_path
from xpsr_jax.errors import UserError, listed

T = TypeVar("T")

# No setting is larger, and larger numbers do not fit into 64 bits.
_LARGEST = 2**63


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number. With `above`, the lower bound is exclusive."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False

    def wrong(self, value: float) -> str | None:
        """The requirement, as a text, if the value does not meet it; otherwise None."""
        if (self.least < value if self.above else self.least <= value) and value <= self.most:
            return None
        if self.most == math.inf:
            return f"{'above' if self.above else 'at least'} {self.least:g}"
        if self.least == -math.inf:
            return f"at most {self.most:g}"
        return f"above {self.least:g} and at most {self.most:g}" if self.above else f"from {self.least} to {self.most}"


@dataclass(frozen=True)
class Length:
    """Inclusive bounds of the number of entries of a tuple."""

    least: int
    most: int


class Mismatch(ValueError):
    """The problems of a value, each with the path of its field.

    Attributes:
      problems: one for each wrong field.
      other_kind: whether the value has a completely different type, such as a text instead of a number.
    """

    def __init__(self, *problems: str, other_kind: bool = False):
        super().__init__(listed(problems, separator="; "))
        self.problems, self.other_kind = problems, other_kind


def from_json(kind: type[T], data: Any, where: object, *, unknown: Literal["refuse", "ignore"] = "refuse") -> T:
    """Makes a dataclass from a JSON object, with nested dataclasses, tuples, unions, Literals and paths.

    Args:
      kind: the dataclass. Its type hints decide how the data are read.
      data: parsed JSON: lists for tuples, texts for paths. Missing fields get their defaults.
      where: source of the data for the message: a file, or a part of one.
      unknown: whether to refuse or ignore fields that the class does not have.

    Raises UserError naming every wrong field, with its path and value.
    """
    try:
        return structure(kind, data, unknown=unknown)
    except Mismatch as mismatch:
        raise UserError(f"{where}: {mismatch}") from None


def structure(kind: type[T], data: Any, *, unknown: Literal["refuse", "ignore"] = "refuse") -> T:
    """Like `from_json`, but raises Mismatch, without the source of the data."""
    made: T = _convert(kind, data, "", unknown == "ignore")
    return made


def check_fields(settings: object, *, shown: Callable[[str], str] = str) -> None:
    """Checks the ranges and lengths of a dataclass's fields; for its `__post_init__`.

    Args:
      shown: gives the text for a field's name in messages.

    Raises UserError naming the first field that is out of range, NaN or infinite.
    """
    kind: Any = type(settings)
    for name, hint in _hints(kind).items():
        if problem := _outside(hint, getattr(settings, name), shown(name)):
            raise UserError(problem)


def _convert(hint: Any, value: Any, path: str, ignore: bool) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        converted = _convert(args[0], value, path, ignore)
        if problem := _bounded(args[1:], converted, path):
            raise Mismatch(problem)
        return converted
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _make(hint, value, path, ignore)
    if origin in (Union, types.UnionType):
        return _one_of(hint, value, path, ignore)
    if origin is tuple and isinstance(value, list | tuple):
        if args[-1] is Ellipsis:
            return tuple(_each((args[0],) * len(value), value, path, ignore))
        if len(args) == len(value):
            return tuple(_each(args, value, path, ignore))
    if origin is Literal and any(value == each and type(value) is type(each) for each in args):
        return value
    if hint is Any or (hint is type(None) and value is None):
        return value
    if hint in (int, float) and isinstance(value, hint | int) and not isinstance(value, bool):
        if not -_LARGEST <= value < 2 * _LARGEST:  # NaN too
            raise Mismatch(f"{path} must be a finite number below 2^64, not {_shown(value)}")
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (str, Path) and isinstance(value, str):
        if hint is str and not _encodable(value):
            raise Mismatch(f"{path} holds a lone surrogate")
        return value if hint is str else as_path(value)
    raise _other_kind(hint, value, path)


def _other_kind(hint: Any, value: Any, path: str) -> Mismatch:
    return Mismatch(f"{path or 'it'} must be {_described(hint)}, not {_shown(value)}", other_kind=True)


def _make(kind: Any, value: Any, path: str, ignore: bool) -> Any:
    if not isinstance(value, Mapping):
        raise _other_kind(kind, value, path)
    hints, problems, values = _hints(kind), [], {}
    begin = f"{path}." if path else ""
    required = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    problems += [f"{begin}{name} is missing" for name in sorted(required - value.keys())]
    for name, each in value.items():
        if name not in hints:
            if not ignore:
                problems.append(f"{begin}{name[:100]}={_shown(each)} is an unknown field")
            continue
        try:
            values[name] = _convert(hints[name], each, begin + name, ignore)
        except Mismatch as mismatch:
            problems += mismatch.problems
    if problems:
        raise Mismatch(*problems)
    try:
        return kind(**values)
    except (UserError, ValueError) as error:
        raise Mismatch(f"{path + ': ' if path else ''}{error}") from error


def _one_of(union: Any, value: Any, path: str, ignore: bool) -> Any:
    """Converts with the first member of a union that accepts the value, otherwise without the value's unknown fields.

    If exactly one member has the value's type, its problems are reported.
    """
    mismatches = []
    for ignored in (False, True) if ignore else (False,):
        for hint in typing.get_args(union):
            try:
                return _convert(hint, value, path, ignored)
            except Mismatch as mismatch:
                mismatches.append(mismatch)
    likely = [mismatch for mismatch in mismatches if not mismatch.other_kind]
    raise likely[0] if len(likely) == 1 else _other_kind(union, value, path)


def _each(hints: tuple[Any, ...], values: Any, path: str, ignore: bool) -> list[Any]:
    converted: list[Any] = []
    problems: list[str] = []
    for i, (hint, value) in enumerate(zip(hints, values, strict=True)):
        try:
            converted.append(_convert(hint, value, f"{path}[{i}]", ignore))
        except Mismatch as mismatch:
            problems += mismatch.problems
    if problems:
        raise Mismatch(*problems)
    return converted


def _outside(hint: Any, value: Any, path: str) -> str | None:
    """The problem of a value with the right type that is out of bounds; otherwise None."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} must be a finite number, not {value}"
    if origin is Annotated:
        return _bounded(args[1:], value, path) or _outside(args[0], value, path)
    if origin in (Union, types.UnionType):
        members = [each for each in args if _is_of(each, value)]
        return _outside(members[0], value, path) if len(members) == 1 else None
    if origin is tuple and isinstance(value, tuple):
        inner = (args[0],) * len(value) if args[-1] is Ellipsis else args
        for i, (each, item) in enumerate(zip(inner, value, strict=True)):
            if problem := _outside(each, item, f"{path}[{i}]"):
                return problem
    return None


def _bounded(bounds: tuple[Any, ...], value: Any, path: str) -> str | None:
    for bound in bounds:
        if isinstance(bound, Range) and isinstance(value, int | float) and (needed := bound.wrong(value)):
            return f"{path} must be {needed}, not {value}"
        if isinstance(bound, Length) and isinstance(value, tuple) and not bound.least <= len(value) <= bound.most:
            return f"{path} must have {bound.least} to {bound.most} entries, not {len(value)}"
    return None


def _is_of(hint: Any, value: Any) -> bool:
    """Whether a Python value may belong to a member of a union. It distinguishes numbers and tuples."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple)
    return isinstance(value, hint | int if hint is float else hint) if isinstance(hint, type) else False


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _described(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _described(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(_described, args))
    if origin is Literal:
        texts = [f'"{each}"' for each in args]
        return " or ".join(texts) if len(texts) < 3 else "one of " + ", ".join(texts)
    if origin is tuple:
        return "a list" if args[-1] is Ellipsis else f"a list of {len(args)} values"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return {**names, type(None): "null"}.get(hint, "an object")


def _shown(value: Any) -> str:
    """A value for a message, in at most one line."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"a list of {len(value)} values"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
