"""Which cases of a test are run when."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def marked_long(cases: Iterable[str], long: Collection[str]) -> list[Any]:
    """The cases as parameters of a test, some of them with the marker `long`."""
    return [pytest.param(case, marks=[pytest.mark.long] * (case in long)) for case in cases]
