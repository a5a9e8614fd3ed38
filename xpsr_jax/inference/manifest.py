"""What was restored into a folder, of what and how: a line an image, so that work can go on where it was stopped."""

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

    A line is written before its image appears, and holds the image's hash: a line whose image is not there, or is
    another, says nothing. Several processes may write lines, if each has outputs of its own.
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
        """Why the output is not what was made of the input as it is now; None if it is, with whatever settings."""
        entry = self._lines.get(self._name(output))
        if entry is None:
            return f"{NAME} has no line for it"
        try:
            if entry.get("output_sha256") != sha256(output):
                return f"it is not the file that {NAME} tells of"
            if entry.get("input_sha256") != sha256(source):
                before = entry.get("input")
                return f"{source} has changed since" if before == str(source) else f"it was made of {before}"
        except (OSError, UserError) as error:
            return f"the two cannot be compared: {error}"
        return None

    def settings(self, output: Path) -> dict[str, Any]:
        """The settings by which the output was made, as JSON. There must be a line for it: see `why_foreign`."""
        settings: dict[str, Any] = self._lines[self._name(output)].get("settings", {})
        return settings

    def differences(self, output: Path, settings: Mapping[str, Any]) -> list[str]:
        """How the settings by which the output was made differ from these, a text for each.

        A setting of the sampling that its line lacks did not exist yet, and was what is now its default.
        """
        recorded, now = self.settings(output), as_json(settings)
        before = as_json(dataclasses.asdict(Sampling())) | recorded
        names = [name for name in now | recorded if before.get(name) != now.get(name)]
        return [f"{name}: was {before.get(name)!r}, is {now.get(name)!r}" for name in names]

    def add(self, output: Path, complete: Path, *, source: Path, settings: Mapping[str, Any], seconds: float) -> None:
        """Writes the line of an output that is complete under another name and about to get its own.

        Raises UserError if the system refuses.
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
        # In ASCII, which also holds names of files that are not UTF-8.
        line = json.dumps(entry).encode() + b"\n"
        if self._in_bucket is not None:
            self._in_bucket.append(line)
            return
        try:
            with (self._folder / NAME).open("a+b") as file:
                # Until the file is closed. Without it, two processes' long lines might mix.
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0, os.SEEK_END)
                # After a line that was cut off, another begins.
                if file.tell() and not _ends_with_newline(file):
                    file.write(b"\n")
                file.write(line)
        except OSError as error:
            raise UserError(f"{self._folder / NAME}: cannot be written: {error.strerror or error}") from error

    def tidy(self) -> None:
        """To be called at the end by who has the folder for itself: in a bucket, puts all lines into the one file."""
        file = self._folder / NAME
        if isinstance(file, BucketPath) and parts_of(file):
            write_whole(file, all_lines(file))

    def _name(self, output: Path) -> str:
        return output.relative_to(self._folder).as_posix()


def sha256(file: Path) -> str:
    """Of a file's bytes. Raises UserError where it is no regular file or cannot be read."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    """The lines as they were written. Others are passed over, such as one whose process was killed in the middle."""
    with open_regular(file) as lines:
        # Bytes: a line that was cut off may end within a character, and texts may hold other ends of lines.
        while line := lines.readline(MAX_LINE_BYTES):
            with contextlib.suppress(UserError, UnicodeDecodeError):
                # Earlier versions wrote names that are not UTF-8 as Python has them.
                text = line.decode(errors="surrogatepass")
                entry = parse_json(text.encode(errors="backslashreplace"), file)
                if isinstance(entry.get("output"), str) and isinstance(entry.get("settings", {}), dict):
                    yield entry


def _ends_with_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
