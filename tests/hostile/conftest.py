"""Fixtures: the process that runs commands, a complete small model, and a photograph."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.hostile.pictures import pixels
from tests.hostile.worker import ROOT, Worker

# A run of version 0.1 with the smallest model. Making a new one would take longer than everything else.
_FILES = ROOT / "tests" / "compatibility" / "v0_1" / "files.tar.xz"
_MODEL = "runs/whole/model"


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with tarfile.open(_FILES) as archive:
        members = [member for member in archive.getmembers() if member.name.startswith(_MODEL)]
        archive.extractall(folder, members, filter="data")
    return folder / _MODEL


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one photograph, a.png."""
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(pixels(0)).save(folder / "a.png")
    return folder
