"""The file that captions are appended to, one whole line at a time, and files put together."""

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from xpsr_jax.data.captions import Record, line_of, read_records, write_records
from xpsr_jax.errors import UserError


class CaptionsFile:
    """JSON lines of captions, open for appending; only one process at a time may have it open.

    A line that was not written to its end (power failed, disk full) is removed when the file is opened.

    Attributes:
      records: by image path, as `read_records` has them.
      repaired: such a line was there.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        try:
            self._lock()
            self.repaired = self._end_whole()
            self.records = read_records(path)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "CaptionsFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def append(self, record: Record) -> None:
        """Adds a line: all of it or, if the disk is full, nothing and UserError."""
        line = line_of(record).encode()
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(None, "the disk is full")
        except OSError as error:
            os.ftruncate(self._file, size)
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error
        self.records[record["image"]] = record

    def remove(self, images: Iterable[str]) -> None:
        """Takes out lines: the file is written anew."""
        for image in images:
            del self.records[image]
        write_records(self.path, self.records.values())
        os.close(self._file)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND)
        self._lock()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                raise OSError("it was written anew meanwhile")
        except OSError as error:
            raise UserError(f"{self.path} is being written by another process; name another --output") from error

    def _end_whole(self) -> bool:
        """Removes what follows the last whole line. A last line that lacks only its end gets it."""
        size = os.fstat(self._file).st_size
        data = os.pread(self._file, size, 0)
        rest = data[data.rfind(b"\n") + 1 :]
        if not rest.strip():
            return False
        try:
            json.loads(rest)
        except ValueError:
            os.ftruncate(self._file, size - len(rest))
            return True
        os.write(self._file, b"\n")
        return False


def merge_captions(files: Sequence[Path], output: Path) -> tuple[int, int, int]:
    """Puts files together into a new one. For an image that several have, the last file's line stands.

    Returns: how many captions there are, how many lines were the same in several files, how many gave way to another.

    Raises:
      UserError: a file cannot be read, or the output not be written.
    """
    merged: dict[str, Record] = {}
    same = replaced = 0
    for file in files:
        for image, record in read_records(file).items():
            if image in merged:
                same += merged[image] == record
                replaced += merged[image] != record
            merged[image] = record
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}") from error
    write_records(output, merged.values())
    return len(merged), same, replaced
