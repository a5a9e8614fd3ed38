"""Captions, which describe a picture's content (high-level) and its quality (low-level), and their file."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpsr_jax.buckets.paths import as_path
from xpsr_jax.data.by_path import ByPath
from xpsr_jax.errors import UserError
from xpsr_jax.files import new_file
from xpsr_jax.json_files import read_json_lines

CaptionRecord = dict[str, Any]


@dataclass(frozen=True)
class Caption:
    """The two captions of one image; either may be empty.

    Attributes:
      high: what is in the picture.
      low: its quality: clarity, colour, noise, lighting.
    """

    high: str = ""
    low: str = ""


def read_captions(path: str | os.PathLike) -> ByPath[Caption]:
    """Reads JSON lines `{"image": relative path, "high": str, "low": str}`.

    Other keys are ignored, and empty lines are skipped.

    Returns: captions by image path, with forward slashes. A path is found in any Unicode form (`ByPath`).

    Raises:
      UserError: the file cannot be read or a line is wrong. The message names the file and the line.
    """
    records = read_caption_records(path)
    return ByPath({i: Caption(record["high"].strip(), record["low"].strip()) for i, record in records.items()})


def read_caption_records(path: str | os.PathLike) -> dict[str, CaptionRecord]:
    """The lines of a caption file with all their keys, such as "source" and "sha256". Raises as `read_captions`."""
    records: dict[str, CaptionRecord] = {}
    for where, value in read_json_lines(as_path(path)):
        record = _checked(value, where)
        if record["image"] in records:
            raise UserError(f"{where}: a second caption for {record['image']!r}; remove one of them.")
        records[record["image"]] = record
    return records


def _checked(record: Any, where: str) -> CaptionRecord:
    if not isinstance(record, dict):
        raise UserError(f'{where}: expected an object {{"image": ..., "high": ..., "low": ...}}.')
    for key in ("image", "high", "low"):
        if not isinstance(text := record.get(key), str):
            raise UserError(f"{where}: {key!r} must be a text, got {json.dumps(text)[:100]}.")
        # The name of a file may have bytes that are not UTF-8; a prompt may not.
        if key != "image" and text != text.encode(errors="ignore").decode():
            raise UserError(f"{where}: {key!r} has an incomplete character (a lone surrogate); remove it.")
    if not record["image"]:
        raise UserError(f"{where}: 'image' is empty; write the image's path.")
    return record | {"image": Path(record["image"]).as_posix()}


def write_captions(path: str | os.PathLike, captions: Mapping[str, Caption], *, source: str | None = None) -> None:
    """Writes JSON lines for `read_captions`, in the given order. The file appears only when it is complete.

    Args:
      source: the name of the captioner.
    """
    further = {"source": source} if source else {}
    write_caption_records(path, [{"image": i, "high": c.high, "low": c.low} | further for i, c in captions.items()])


def write_caption_records(path: str | os.PathLike, records: Iterable[CaptionRecord]) -> None:
    """Writes records for `read_caption_records`. Raises UserError if the file cannot be written."""
    with new_file(as_path(path)) as temporary, temporary.open("wb") as file:
        file.writelines(line_of(record).encode() for record in records)


def line_of(record: CaptionRecord) -> str:
    """A record's line, with the newline."""
    line = json.dumps(record, ensure_ascii=False)
    # File names that are not valid UTF-8 are written with escapes.
    return (line if line.isascii() or line.encode(errors="ignore").decode() == line else json.dumps(record)) + "\n"
