"""Settings from JSON: one error names all problems with the paths of their fields."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from xpsr_jax.errors import UserError
from xpsr_jax.serialisation import Length, Range, check_fields, from_json

Count = Annotated[int, Range(1, 64)]


@dataclass(frozen=True)
class Inner:
    rate: Annotated[float, Range(0, above=True)] = 0.5
    on: bool = True


@dataclass(frozen=True)
class Other:
    kind: Literal["a", "b"] = "a"
    depth: int = 1


@dataclass(frozen=True)
class Settings:
    name: str
    count: Count = 1
    counts: Annotated[tuple[Count, ...], Length(1, 3)] = (1,)
    heads: Count | tuple[Count, ...] | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    pairs: tuple[tuple[float, Path], ...] = ()
    folder: Path | None = None
    inner: Inner = Inner()
    either: Inner | Other = Inner()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.name == "no":
            raise ValueError("there is no such name")


def test_json_is_converted_by_the_type_hints():
    data = {
        "name": "x",
        "counts": [1, 2],
        "heads": [3, 4],
        "interval": [0, 0.5],
        "pairs": [[1, "a/b"]],
        "folder": "c",
        "inner": {"rate": 2, "on": False},
        "either": {"kind": "b"},
    }
    expected = Settings(
        "x", 1, (1, 2), (3, 4), (0, 0.5), ((1, Path("a/b")),), Path("c"), Inner(2, False), Other("b", 1)
    )
    assert from_json(Settings, data, "f") == expected
    # Whole numbers are not converted to float, so that records and their hashes do not change.
    assert isinstance(from_json(Settings, data, "f").inner.rate, int)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "f: name is missing"),
        ([1], "f: it must be an object, not [1]"),
        ({"name": 3}, "f: name must be a text, not 3"),
        ({"name": "x\ud800"}, "f: name holds a lone surrogate"),
        ({"name": "x", "count": True}, "f: count must be a whole number, not true"),
        ({"name": "x", "count": 2.0}, "f: count must be a whole number, not 2.0"),
        ({"name": "x", "count": "2"}, 'f: count must be a whole number, not "2"'),
        ({"name": "x", "count": None}, "f: count must be a whole number, not null"),
        ({"name": "x", "count": 0}, "f: count must be from 1 to 64, not 0"),
        ({"name": "x", "count": 10**9}, "f: count must be from 1 to 64, not 1000000000"),
        ({"name": "x", "count": 10**30}, "f: count must be a finite number below 2^64, not 1" + "0" * 30),
        ({"name": "x", "counts": []}, "f: counts must have 1 to 3 entries, not 0"),
        ({"name": "x", "counts": [1, 0, "a"]}, "f: counts[1] must be from 1 to 64, not 0; counts[2] must be a whole"),
        ({"name": "x", "heads": 0}, "f: heads must be from 1 to 64, not 0"),
        ({"name": "x", "heads": [1, 0]}, "f: heads[1] must be from 1 to 64, not 0"),
        ({"name": "x", "heads": "a"}, 'f: heads must be a whole number or a list or null, not "a"'),
        ({"name": "x", "interval": [1]}, "f: interval must be a list of 2 values, not [1]"),
        ({"name": "x", "pairs": [[1]]}, "f: pairs[0] must be a list of 2 values, not [1]"),
        ({"name": "x", "inner": {"rate": float("nan")}}, "f: inner.rate must be a finite number below 2^64, not NaN"),
        ({"name": "x", "inner": {"rate": 0}}, "f: inner.rate must be above 0, not 0"),
        ({"name": "x", "inner": {"on": 1}}, "f: inner.on must be true or false, not 1"),
        ({"name": "x", "inner": {"of": 1}}, "f: inner.of=1 is an unknown field"),
        ({"name": "x", "either": {"kind": "c"}}, "f: either must be an object or an object, not an object"),
        ({"name": "no"}, "f: there is no such name"),
        ({"name": "x", "a\x1b": "y" * 100}, 'f: a\\x1b="' + "y" * 59 + "... is an unknown field"),
        ({str(i): i for i in range(20)}, "f: name is missing; 0=0 is an unknown field; 1=1 is an unknown field"),
    ],
)
def test_problems_are_named(data, problem):
    with pytest.raises(UserError) as caught:
        from_json(Settings, data, "f")
    assert str(caught.value).startswith(problem) and "\n" not in str(caught.value)


def test_unknown_fields_may_be_ignored():
    """In a union, the member that has all fields takes precedence."""
    data = {"name": "x", "gone": 1, "inner": {"gone": 2}, "either": {"depth": 3}}
    assert from_json(Settings, data, "f", unknown="ignore") == Settings("x", either=Other(depth=3))
    assert from_json(Settings, data | {"either": {"gone": 3}}, "f", unknown="ignore") == Settings("x")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"count": 65}, "count must be from 1 to 64, not 65"),
        ({"heads": (1, 0)}, r"heads\[1\] must be from 1 to 64"),
        ({"interval": (0.0, float("nan"))}, r"interval\[1\] must be a finite number, not nan"),
        ({"counts": (1,) * 4}, "counts must have 1 to 3 entries, not 4"),
    ],
)
def test_ranges_are_checked_in_python_too(fields, problem):
    with pytest.raises(UserError, match=problem):
        Settings("x", **fields)
