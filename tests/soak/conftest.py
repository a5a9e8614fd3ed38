"""All tests of this folder are soak tests; their photographs."""

from pathlib import Path

import pytest

from tests.training import tiny


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.soak)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_photos(tmp_path_factory.mktemp("photos")).folder
