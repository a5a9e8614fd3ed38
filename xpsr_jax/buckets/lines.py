"""Files of lines that grow, in a bucket, where no file can be appended to: they grow by parts beside them.

Lines of FILE are also in `FILE.parts/`, objects of at most `_IN_A_PART` lines, later ones by name. Several processes
may add lines at once: each writes parts of its own. Who has the file for itself puts all of it into FILE again.
"""

import os
import time

from xpsr_jax.buckets.paths import BucketPath

_IN_A_PART = 100


def parts_of(file: BucketPath) -> list[BucketPath]:
    """The parts that are there, oldest first."""
    folder = _folder(file)
    return [folder / name for name in folder.files()]


def all_lines(file: BucketPath) -> bytes:
    """What the file and its parts hold; nothing if there are none of them.

    A line that is there twice is taken once: `write_whole` was stopped in the middle.
    """
    data = [each.read_bytes() for each in [*([file] if file.is_file() else []), *parts_of(file)]]
    return b"".join(dict.fromkeys(line for each in data for line in each.splitlines(keepends=True)))


def write_whole(file: BucketPath, data: bytes) -> None:
    """Puts all lines into the file, and removes the parts."""
    file.write_bytes(data)
    _folder(file).remove_tree()


class Lines:
    """Adds lines to a file, as parts of this object's own.

    Args:
      every: seconds that a line may wait until it is in the bucket, with those that come meanwhile; 0: none waits.
    """

    def __init__(self, file: BucketPath, *, every: float = 0.0):
        self._folder, self._every = _folder(file), every
        self._name = f"{time.time_ns():020d}-{os.urandom(4).hex()}"
        self._lines: list[bytes] = []
        self._part, self._written, self._last = 0, 0, time.monotonic()

    def append(self, line: bytes) -> None:
        """Adds a line, with its end. Raises UserError where the bucket refuses."""
        self._lines.append(line)
        if len(self._lines) >= _IN_A_PART or time.monotonic() - self._last >= self._every:
            self.flush()

    def flush(self) -> None:
        """Lets no line wait any longer."""
        if len(self._lines) > self._written:
            (self._folder / f"{self._name}-{self._part:06d}").write_bytes(b"".join(self._lines))
            self._written, self._last = len(self._lines), time.monotonic()
        if len(self._lines) >= _IN_A_PART:
            self._part, self._lines, self._written = self._part + 1, [], 0


def _folder(file: BucketPath) -> BucketPath:
    return file.with_name(f"{file.name}.parts")
