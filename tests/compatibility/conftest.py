"""The files of a user of version 0.1, in a separate folder for each test; and commands as users run them."""

import runpy
import shutil
import signal
import sys
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHIVE = Path(__file__).parent / "v0_1" / "files.tar.xz"

Command = Callable[..., int]


@pytest.fixture(scope="module", autouse=True)
def quickly(compiled_quickly: None) -> None:
    """Compiles in the same way as when the files were made."""


@pytest.fixture(scope="session")
def as_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files as version 0.1 wrote them. Tests must not change these."""
    folder = tmp_path_factory.mktemp("v0_1") / "as_made"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def here(as_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, which is the working directory."""
    folder = tmp_path / "v0_1"
    shutil.copytree(as_made, folder)
    for name in ("restored", "restored_half", "restored_measured"):
        file = folder / name / "restored.jsonl"
        file.write_text(file.read_text().replace("@HERE@", str(folder.resolve())))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `python NAME ARGUMENTS` in this process, and returns its exit code. A NAME without .py is a module."""

    def run(name: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with warnings.catch_warnings():
                # Another test may have imported the module.
                warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
                if name.endswith(".py"):
                    runpy.run_path(str(ROOT / name), run_name="__main__")
                else:
                    runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as stopped:
            return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return 0

    return run
