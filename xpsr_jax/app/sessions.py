"""The visitors' sessions: their files and the limits for them.

Paths of files are stored here, on the server. In an event the browser sends only the name of its session, and no paths.
The one exception is an upload. `Sessions.take` checks and copies it.
"""

import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from xpsr_jax.errors import UserError
from xpsr_jax.files import open_regular

# A session that was idle for this time, in seconds, is deleted with its files.
MAX_AGE = 24 * 3600.0
# An upload is copied to its session at once. Files that are still in the upload folder after this time are deleted.
MAX_UPLOAD_AGE = 120.0
# When a limit is reached, sessions without an open page are deleted if they were idle for this time.
MIN_IDLE = 60.0

NAME = re.compile("[A-Za-z0-9_-]{1,64}")
# The name of an upload's folder is a hash that is salted by this process.
UPLOAD = re.compile("[0-9a-f]{64}")
REFUSED = "This was refused. Reload the page and drop the photograph again."


class Cancelled(Exception):
    """The visitor has cancelled the work."""


class Refused(UserError):
    """The browser sent something that the present page does not send."""

    def __init__(self) -> None:
        super().__init__(REFUSED)


class Full(UserError):
    """A limit for all visitors together was reached."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"The page is busy: {limit}. Try again later.")


@dataclass(frozen=True)
class Limits:
    """The limits for all visitors together.

    Attributes:
        sessions: number of browser tabs.
        upload_bytes: size of one uploaded file.
        all_uploads_bytes: size of all uploads that are on the disk or are arriving.
        disk_bytes: size of all uploads, previews and results.
    """

    sessions: int = 32
    upload_bytes: int = 64_000_000
    all_uploads_bytes: int = 1_000_000_000
    disk_bytes: int = 4_000_000_000


@dataclass(frozen=True)
class Result:
    """A restored photograph.

    Attributes:
        file: the result in full size.
        before, after: two previews of the same size, for the browser.
        note: the size of the result, and how long it took.
    """

    file: Path
    before: Path
    after: Path
    note: str


@dataclass
class Session:
    """One visitor's browser tab.

    Attributes:
        folder: the folder for its files. It is made when it is needed.
        photo: the photograph of the first tab. None: there is none.
        chosen: the photograph that is being restored. Another one may be uploaded meanwhile.
        results: results of the first tab, the oldest first.
        photos: the files of the second tab.
        one, many: set to cancel the work of the first or second tab.
        connections: number of open pages.
        at_work: number of restorations that are running.
        used: time of the last use, on the monotonic clock.
    """

    folder: Path
    photo: Path | None = None
    chosen: Path | None = None
    results: list[Result] = field(default_factory=list)
    photos: list[Path] = field(default_factory=list)
    one: threading.Event = field(default_factory=threading.Event)
    many: threading.Event = field(default_factory=threading.Event)
    connections: int = 0
    at_work: int = 0
    used: float = field(default_factory=time.monotonic)

    def new_folder(self) -> Path:
        """Makes a new folder of the session. Its name cannot be guessed."""
        folder = self.folder / secrets.token_urlsafe(16)
        folder.mkdir(parents=True)
        return folder

    def remove(self, file: Path | None) -> None:
        """Deletes a photograph's folder, unless the photograph is still needed or is an example."""
        if file is not None and file not in (self.photo, self.chosen) and file.is_relative_to(self.folder):
            shutil.rmtree(file.parent, ignore_errors=True)

    @contextmanager
    def working(self) -> Iterator[None]:
        """The session is not deleted while this context is open."""
        self.at_work += 1
        try:
            yield
        finally:
            self.at_work -= 1

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Counts an open page while this context is open."""
        self.connections += 1
        try:
            yield
        finally:
            self.connections -= 1

    def leave(self) -> None:
        """Cancels the work, because the visitor has left."""
        self.one.set()
        self.many.set()


class Sessions:
    """All sessions, by the name that the browser chose for each.

    Args:
        folder: Gradio's upload folder. An upload is `folder/HASH/NAME`. The sessions' folders are inside it too,
            because Gradio shows files in it to the browser without another copy.
        limits: limits for all sessions together.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder.resolve()
        self.limits = limits
        self._sessions: dict[str, Session] = {}
        self._arriving = 0
        self._lock = threading.RLock()

    def __contains__(self, name: str) -> bool:
        return name in self._sessions

    def of(self, name: str | None) -> Session:
        """The session with this name, or a new one if there is none. Raises Refused and Full."""
        if name is None or not NAME.fullmatch(name):
            raise Refused
        with self._lock:
            self._end(lambda session: time.monotonic() - session.used > MAX_AGE)
            if name not in self._sessions:
                while len(self._sessions) >= self.limits.sessions:
                    if not self._end_the_idlest():
                        raise Full(f"it has {self.limits.sessions} visitors already")
                self._sessions[name] = Session(self.folder / "sessions" / secrets.token_urlsafe(16))
            self._sessions[name].used = time.monotonic()
            return self._sessions[name]

    def uploaded(self, path: object) -> Path:
        """The path of the upload that the browser names, with links resolved. Raises Refused if it is not an upload."""
        try:
            if isinstance(path, str):
                file = Path(path).resolve(strict=True)
                is_upload = file.parent.parent == self.folder and UPLOAD.fullmatch(file.parent.name)
                if is_upload and stat.S_ISREG(file.stat().st_mode):
                    return file
        except (OSError, ValueError, RuntimeError):
            pass
        raise Refused

    def take(self, session: Session, path: object) -> Path:
        """Copies an upload to the session's own folder, under its name. Raises Refused and Full."""
        upload = self.uploaded(path)
        self.check_room(upload.stat().st_size)
        file = session.new_folder() / upload.name
        with open_regular(upload, max_bytes=self.limits.upload_bytes) as source, file.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        return file

    @contextmanager
    def arriving(self, size: int) -> Iterator[None]:
        """Reserves that many bytes for an upload while it arrives. Raises Full."""
        with self._lock:
            self.check_room(size)
            self._arriving += size
        try:
            yield
        finally:
            with self._lock:
                self._arriving -= size

    def check_room(self, size: int = 0) -> None:
        """Raises Full if an upload of that many bytes would exceed a limit. First tries to delete idle sessions."""
        with self._lock:
            self._remove_old_uploads()
            while True:
                uploads, all_files = self._bytes()
                if uploads + self._arriving + size > self.limits.all_uploads_bytes:
                    limit = "all uploads together are too large"
                elif all_files + self._arriving + size > self.limits.disk_bytes:
                    limit = "its disk space is used up"
                else:
                    return
                if not self._end_the_idlest():
                    raise Full(limit)

    def _bytes(self) -> tuple[int, int]:
        """The bytes of uploads, and of all files, on the disk."""
        sources = {file for session in self._sessions.values() for file in (session.photo, session.chosen) if file}
        sources |= {file for session in self._sessions.values() for file in session.photos}
        uploads = others = 0
        for path in self.folder.rglob("*"):
            try:
                status = path.stat()
            except OSError:  # The file was deleted just now.
                continue
            if stat.S_ISREG(status.st_mode):
                top = path.relative_to(self.folder).parts[0]
                if path in sources or UPLOAD.fullmatch(top) or top.startswith("tmp"):
                    uploads += status.st_size
                else:
                    others += status.st_size
        return uploads, uploads + others

    def _remove_old_uploads(self) -> None:
        """Deletes old uploads, including the remains of interrupted ones."""
        hashes = [path for path in self.folder.iterdir() if UPLOAD.fullmatch(path.name)]
        for path in [*self.folder.glob("tmp*"), *(file for folder in hashes for file in folder.iterdir())]:
            try:
                status = path.stat()
                old = time.time() - max(status.st_mtime, status.st_ctime) > MAX_UPLOAD_AGE
                if old and stat.S_ISREG(status.st_mode):
                    path.unlink()
            except OSError:
                continue

    def _end(self, when: Callable[[Session], bool]) -> None:
        for name in [name for name, session in self._sessions.items() if when(session) and not session.at_work]:
            shutil.rmtree(self._sessions.pop(name).folder, ignore_errors=True)

    def _end_the_idlest(self) -> bool:
        """Deletes the session without an open page that was idle for the longest time. False: there is none."""
        now = time.monotonic()
        idle = [
            session
            for session in self._sessions.values()
            if not session.connections and not session.at_work and now - session.used > MIN_IDLE
        ]
        idlest = min(idle, key=lambda session: session.used, default=None)
        self._end(lambda session: session is idlest)
        return idlest is not None
