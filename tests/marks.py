"""Markers for the cases of a test."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def marked_long(cases: Iterable[str], long: Collection[str]) -> list[Any]:
    """The cases as parameters of a test. Those in `long` get the marker `long`."""
    return _marked(pytest.mark.long, cases, long)


def marked_more(cases: Iterable[str], more: Collection[str]) -> list[Any]:
    """The cases as parameters of a test. Those in `more` get the marker `more`."""
    return _marked(pytest.mark.more, cases, more)


def _marked(marker: pytest.MarkDecorator, cases: Iterable[str], some: Collection[str]) -> list[Any]:
    return [pytest.param(case, marks=[marker] * (case in some)) for case in cases]
