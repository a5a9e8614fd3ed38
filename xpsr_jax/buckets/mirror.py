"""A local folder for files that are appended to, mirrored to a bucket."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from xpsr_jax.buckets.connection import tried, writing
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.buckets.uploads import local_workplace

_EVERY = 60.0  # seconds


class Mirror:
    """A local folder to write into. For a local `folder`, it is that folder itself.

    For a folder in a bucket, it is a temporary folder with the same name. `push` uploads changed files as a whole, so
    each file in the bucket is a consistent state.

    Attributes:
      place: the local folder to write into.
    """

    def __init__(self, folder: Path, place: Path):
        self._folder, self.place = folder, place
        self._pushed = dict(self._files())
        self._last = time.monotonic()

    def push(self) -> None:
        """Uploads changed files. Raises UserError if the bucket refuses."""
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
        """Whether the folder is in a bucket, so that `push` is needed."""
        return isinstance(self._folder, BucketPath)

    @property
    def is_due(self) -> bool:
        """Whether `push` is needed, and the last one was at least a minute ago."""
        return self.follows and time.monotonic() - self._last >= _EVERY

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        if isinstance(self._folder, BucketPath):
            for path in self.place.rglob("*"):
                if path.is_file():
                    status = path.stat()
                    yield path.relative_to(self.place).as_posix(), (status.st_mtime_ns, status.st_size)


@contextlib.contextmanager
def mirrored(folder: Path, *, begun_with: Sequence[str]) -> Iterator[Mirror]:
    """A mirror of `folder`. The last changes are uploaded at the end of the block, even after an error.

    Args:
      begun_with: files to append to. Those that exist are downloaded first.
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
            with contextlib.suppress(Exception):  # The error that ended the block is more important.
                mirror.push()
            raise
        mirror.push()
