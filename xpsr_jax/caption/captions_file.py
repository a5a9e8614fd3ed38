"""The file to which captions are appended, one whole line at a time. Also merges such files."""

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from xpsr_jax.buckets.lines import Lines, all_lines, write_whole
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.buckets.uploads import local_workplace
from xpsr_jax.data.captions import CaptionRecord, line_of, read_caption_records, write_caption_records
from xpsr_jax.errors import UserError
from xpsr_jax.locks import locked_output

_EVERY = 10.0  # seconds


class CaptionsFile:
    """A JSON-lines file of captions, open for appending. Only one process at a time can open it.

    An incomplete last line (power failure, full disk) is removed when the file is opened. A new file that gets no line
    is removed when it is closed. In a bucket, a new line appears after at most 10 seconds.

    Attributes:
      records: records by image path, as in `read_caption_records`.
      repaired: whether an incomplete line was removed.
    """

    def __init__(self, path: Path):
        self.path = path
        # For a file in a bucket, a local copy is used. New lines are also written to the bucket, as part files.
        self._local, self._lines = path, Lines(path, every=_EVERY) if isinstance(path, BucketPath) else None
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked_output(path))
            if isinstance(path, BucketPath):
                self._local = stack.enter_context(local_workplace(path)) / path.name
                self._local.write_bytes(all_lines(path))
            elif not os.path.lexists(path):
                stack.callback(self._remove_if_empty)
            self._file = self._open()
            stack.callback(lambda: os.close(self._file))
            if isinstance(path, BucketPath):
                stack.callback(self._upload)
            self.repaired = self._end_whole()
            self.records = read_caption_records(self._local)
            self._stack = stack.pop_all()

    def __enter__(self) -> "CaptionsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, record: CaptionRecord) -> None:
        """Adds a whole line. Raises UserError, and adds nothing, if the disk is full."""
        line = line_of(record).encode()
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(None, "the disk is full")
        except OSError as error:
            os.ftruncate(self._file, size)
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error
        if self._lines is not None:
            self._lines.append(line)
        self.records[record["image"]] = record

    def remove(self, images: Iterable[str]) -> None:
        """Removes the lines of these images. The file is rewritten for this."""
        for image in images:
            del self.records[image]
        write_caption_records(self._local, self.records.values())
        os.close(self._file)
        self._file = self._open()
        self._upload()

    def _open(self) -> int:
        try:
            file = os.open(self._local, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise UserError(f"{self.path} cannot be written: it is not a file")
        return file

    def _upload(self) -> None:
        """In a bucket, joins all lines into one file, if there are any."""
        if isinstance(self.path, BucketPath):
            data = self._local.read_bytes()
            if data or self.path.is_file():
                write_whole(self.path, data)
                self._lines = Lines(self.path, every=_EVERY)

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            if not self.path.stat().st_size:
                self.path.unlink()

    def _end_whole(self) -> bool:
        """Makes the last line whole. A line that lacks only its newline gets one. An incomplete line is removed.

        Returns whether a line was removed.
        """
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
        except RecursionError:
            pass  # the line is whole; reading it will raise the error
        os.write(self._file, b"\n")
        return False


def content_of(record: CaptionRecord) -> str | None:
    """The SHA-256 of the image for which a caption was written, if the record has it."""
    sha256 = record.get("sha256")
    return sha256 if isinstance(sha256, str) else None


def merge_captions(files: Sequence[Path], output: Path) -> tuple[int, int, int]:
    """Merges captions files into a new file. If several files have the same image, the line of the last file is kept.

    Returns: the number of captions, of lines that were equal in several files, and of lines that were replaced by a
      line of a later file.

    Raises:
      UserError: a file cannot be read, or the output cannot be written.
    """
    with locked_output(output):
        return _merge(files, output)


def _merge(files: Sequence[Path], output: Path) -> tuple[int, int, int]:
    merged: dict[str, CaptionRecord] = {}
    same = replaced = 0
    for file in files:
        for image, record in read_caption_records(file).items():
            if image in merged:
                same += merged[image] == record
                replaced += merged[image] != record
            merged[image] = record
    write_caption_records(output, merged.values())
    return len(merged), same, replaced
