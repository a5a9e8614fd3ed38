"""Finding by an image's path, however its letters are put together."""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import TypeVar

Value = TypeVar("Value")


def composed(name: str) -> str:
    """The name with letters and accents as one character each: file names of a Mac have é as two."""
    return unicodedata.normalize("NFC", name)


class ByPath(Mapping[str, Value]):
    """Values by image path. A path finds its own value, else that of the same name put together otherwise."""

    def __init__(self, values: Mapping[str, Value]):
        self._values = dict(values)
        self._composed = {composed(path): value for path, value in values.items()}

    def __getitem__(self, path: str) -> Value:
        return self._values[path] if path in self._values else self._composed[composed(path)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __or__(self, other: Mapping[str, Value]) -> "ByPath[Value]":
        return ByPath({**self, **other})
