"""Marks all tests of this folder as soak tests. Fixtures: photographs, and the process that runs commands."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.worker import Worker
from tests.training import tiny


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.soak)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_photos(tmp_path_factory.mktemp("photos")).folder


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker
