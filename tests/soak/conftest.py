"""The photographs of every soak test."""

from pathlib import Path

import pytest

from tests.training import tiny


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_photos(tmp_path_factory.mktemp("photos")).folder
