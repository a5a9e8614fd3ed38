"""Growing files of lines in a bucket. Objects cannot be appended to, so new lines go into separate parts.

`FILE.parts/` holds further lines of FILE, in objects of at most `_IN_A_PART` lines, ordered by name. Several processes
may add lines at the same time, each in parts of its own. A process with exclusive access can move all lines into FILE.
"""

import os
import time

from xpsr_jax.buckets.paths import BucketPath

_IN_A_PART = 100


def parts_of(file: BucketPath) -> list[BucketPath]:
    """The existing parts, oldest first."""
    folder = _folder(file)
    return [folder / name for name in folder.files()]


def all_lines(file: BucketPath) -> bytes:
    """The lines of the file and its parts; empty if none of them exist.

    Repeated lines are returned once. They occur if `write_whole` was stopped halfway.
    """
    data = [each.read_bytes() for each in [*([file] if file.is_file() else []), *parts_of(file)]]
    return b"".join(dict.fromkeys(line for each in data for line in each.splitlines(keepends=True)))


def write_whole(file: BucketPath, data: bytes) -> None:
    """Writes all lines into the file, and removes the parts."""
    file.write_bytes(data)
    _folder(file).remove_tree()


class Lines:
    """Adds lines to a file. Each object of this class writes its own parts.

    Args:
      every: seconds for which lines may be collected before they are written; 0: each is written at once.
    """

    def __init__(self, file: BucketPath, *, every: float = 0.0):
        self._folder, self._every = _folder(file), every
        self._name = f"{time.time_ns():020d}-{os.urandom(4).hex()}"
        self._lines: list[bytes] = []
        self._part, self._written, self._last = 0, 0, time.monotonic()

    def append(self, line: bytes) -> None:
        """Adds a line, which must end with a newline. Raises UserError if the bucket refuses."""
        self._lines.append(line)
        if len(self._lines) >= _IN_A_PART or time.monotonic() - self._last >= self._every:
            self.flush()

    def flush(self) -> None:
        """Writes all collected lines."""
        if len(self._lines) > self._written:
            (self._folder / f"{self._name}-{self._part:06d}").write_bytes(b"".join(self._lines))
            self._written, self._last = len(self._lines), time.monotonic()
        if len(self._lines) >= _IN_A_PART:
            self._part, self._lines, self._written = self._part + 1, [], 0


def _folder(file: BucketPath) -> BucketPath:
    return file.with_name(f"{file.name}.parts")
