"""A local folder for files that are appended to, whose copies in a bucket follow."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from xpsr_jax.buckets.connection import tried, writing
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.buckets.uploads import local_workplace

_EVERY = 60.0  # seconds


class Mirror:
    """A folder to write into, which is `folder` itself on a disk.

    For a folder in a bucket it is a temporary one of the same name on this machine, and what changed in it is uploaded
    by `push`: whole files, so a file in the bucket is as it was at one moment.

    Attributes:
      place: the folder to write into.
    """

    def __init__(self, folder: Path, place: Path):
        self._folder, self.place = folder, place
        self._pushed = dict(self._files())
        self._last = time.monotonic()

    def push(self) -> None:
        """Uploads what changed. Raises UserError where the bucket refuses."""
        if not isinstance(self._folder, BucketPath):
            return
        now, self._last = dict(self._files()), time.monotonic()
        if changed := sorted(name for name in now if self._pushed.get(name) != now[name]):
            with writing(self._folder):
                targets = [f"{self._folder.key}/{name}" for name in changed]
                fs, sources = self._folder.fs, [str(self.place / name) for name in changed]
                tried(lambda: fs.put(sources, targets))
        self._pushed = now

    @property
    def follows(self) -> bool:
        """Whether there is something to push to."""
        return isinstance(self._folder, BucketPath)

    @property
    def is_due(self) -> bool:
        """Whether there is, and the last push was a minute ago."""
        return self.follows and time.monotonic() - self._last >= _EVERY

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        if isinstance(self._folder, BucketPath):
            for path in self.place.rglob("*"):
                if path.is_file():
                    status = path.stat()
                    yield path.relative_to(self.place).as_posix(), (status.st_mtime_ns, status.st_size)


@contextlib.contextmanager
def mirrored(folder: Path, *, begun_with: Sequence[str]) -> Iterator[Mirror]:
    """A mirror of `folder`; what changed last is uploaded at the end, however it ends.

    Args:
      begun_with: files that are fetched first, if they are there: those that are appended to.
    """
    if not isinstance(folder, BucketPath):
        yield Mirror(folder, folder)
        return
    with local_workplace(folder) as parent:
        place = parent / folder.name
        place.mkdir()
        for name in begun_with:
            if (file := folder / name).is_file():
                file.download(place / name)
        mirror = Mirror(folder, place)
        try:
            yield mirror
        except BaseException:
            with contextlib.suppress(Exception):  # What ended the work says more.
                mirror.push()
            raise
        mirror.push()
