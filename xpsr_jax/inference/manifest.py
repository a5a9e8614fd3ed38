"""Records which images were restored into a folder, one line per image, so that a stopped job can be resumed."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from xpsr_jax.buckets.lines import Lines, all_lines, parts_of, write_whole
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.config import Sampling
from xpsr_jax.errors import UserError
from xpsr_jax.files import open_regular
from xpsr_jax.json_files import MAX_LINE_BYTES, as_json, parse_json

NAME = "restored.jsonl"


class Manifest:
    """The file restored.jsonl of an output folder.

    A line is written before its image appears, and holds the image's hash. A line is ignored if its image is missing or
    has another hash. Several processes may write lines, if each has its own outputs.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._lines: dict[str, dict[str, Any]] = {}
        file = folder / NAME
        self._in_bucket = Lines(file) if isinstance(file, BucketPath) else None
        parts = parts_of(file) if isinstance(file, BucketPath) else []
        for each in [*([file] if file.exists() else []), *parts]:
            for entry in _entries(each):
                self._lines[entry["output"]] = entry

    def why_foreign(self, output: Path, source: Path) -> str | None:
        """Why the output was not made from the present input. None if it was made from it, with any settings."""
        entry = self._lines.get(self._name(output))
        if entry is None:
            return f"{NAME} has no line for it"
        try:
            if entry.get("output_sha256") != sha256(output):
                return f"it is not the file that {NAME} records"
            if entry.get("input_sha256") != sha256(source):
                before = entry.get("input")
                return f"{source} has changed since" if before == str(source) else f"it was made from {before}"
        except (OSError, UserError) as error:
            return f"the two cannot be compared: {error}"
        return None

    def settings(self, output: Path) -> dict[str, Any]:
        """The settings with which the output was made, as JSON values. It must have a line: see `why_foreign`."""
        settings: dict[str, Any] = self._lines[self._name(output)].get("settings", {})
        return settings

    def differences(self, output: Path, settings: Mapping[str, Any]) -> list[str]:
        """The differences between the settings of the output and these settings, one text for each.

        A sampling setting that is missing in the output's line did not exist then. Its default counts.
        """
        recorded, now = self.settings(output), as_json(settings)
        before = as_json(dataclasses.asdict(Sampling())) | recorded
        names = [name for name in now | recorded if before.get(name) != now.get(name)]
        return [f"{name}: was {before.get(name)!r}, is {now.get(name)!r}" for name in names]

    def add(self, output: Path, complete: Path, *, source: Path, settings: Mapping[str, Any], seconds: float) -> None:
        """Writes the line of an output. Its file is complete, but still has a temporary name.

        Raises UserError if the system refuses to write.
        """
        name = self._name(output)
        entry: dict[str, Any] = {
            "output": name,
            "input": str(source),
            "input_sha256": sha256(source),
            "output_sha256": sha256(complete),
            "seconds": round(seconds, 3),
            "settings": as_json(settings),
        }
        self._lines[name] = entry
        # JSON in ASCII can hold file names that are not UTF-8.
        line = json.dumps(entry).encode() + b"\n"
        if self._in_bucket is not None:
            self._in_bucket.append(line)
            return
        try:
            with (self._folder / NAME).open("a+b") as file:
                # The lock lasts until the file is closed. Without it, long lines of two processes could mix.
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0, os.SEEK_END)
                # If the last line was cut off, end it first.
                if file.tell() and not _ends_with_newline(file):
                    file.write(b"\n")
                file.write(line)
        except OSError as error:
            raise UserError(f"{self._folder / NAME}: cannot be written: {error.strerror or error}") from error

    def tidy(self) -> None:
        """In a bucket, joins all lines into one file. Call it at the end, when no other process uses the folder."""
        file = self._folder / NAME
        if isinstance(file, BucketPath) and parts_of(file):
            write_whole(file, all_lines(file))

    def _name(self, output: Path) -> str:
        return output.relative_to(self._folder).as_posix()


def sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes. Raises UserError if it is not a regular file or cannot be read."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    """The valid lines of a file. Broken lines are ignored, for example one whose process was killed while writing."""
    with open_regular(file) as lines:
        # Read as bytes: a cut-off line may end within a character, and texts may contain other line ends.
        while line := lines.readline(MAX_LINE_BYTES):
            with contextlib.suppress(UserError, UnicodeDecodeError):
                # Earlier versions wrote names that are not UTF-8 with Python's surrogate escapes.
                text = line.decode(errors="surrogatepass")
                entry = parse_json(text.encode(errors="backslashreplace"), file)
                if isinstance(entry.get("output"), str) and isinstance(entry.get("settings", {}), dict):
                    yield entry


def _ends_with_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
