"""What the page remembers of each visitor."""

import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

# Of a session that nobody has used for a day, the files are deleted.
MAX_AGE = 24 * 3600.0


class Cancelled(Exception):
    """The visitor wants no more of it."""


@dataclass(frozen=True)
class Result:
    """A restored photograph.

    Attributes:
        file: in full.
        before, after: of one size, for the browser.
        note: its size, and how long it took.
    """

    file: Path
    before: Path
    after: Path
    note: str


@dataclass
class Session:
    """One visitor's browser tab.

    Attributes:
        folder: for its files.
        photo: what was uploaded last to be restored; None: nothing.
        chosen: what is being restored; another photo may be uploaded meanwhile.
        results: the oldest first.
        one, many: set when the work of the first or second tab is to end.
    """

    folder: Path
    photo: Path | None = None
    chosen: Path | None = None
    results: list[Result] = field(default_factory=list)
    one: threading.Event = field(default_factory=threading.Event)
    many: threading.Event = field(default_factory=threading.Event)
    used: float = field(default_factory=time.monotonic)

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))


class Sessions:
    """Sessions by gradio's name for them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str | None) -> Session:
        if name is None:
            raise ValueError("a request that is not from the page")
        with self._lock:
            now = time.monotonic()
            for old in [old for old, session in self._sessions.items() if now - session.used > MAX_AGE]:
                shutil.rmtree(self._sessions.pop(old).folder, ignore_errors=True)
            if name not in self._sessions:
                self._sessions[name] = Session(Path(tempfile.mkdtemp(dir=self._folder)))
            self._sessions[name].used = now
            return self._sessions[name]
