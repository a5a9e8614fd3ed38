"""Look-up by an image's path, independent of its Unicode form."""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import TypeVar

Value = TypeVar("Value")


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC), where é is one character. File names from a Mac have two."""
    return unicodedata.normalize("NFC", name)


class ByPath(Mapping[str, Value]):
    """Values by image path. If a path itself is missing, the same path in another Unicode form is found."""

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
