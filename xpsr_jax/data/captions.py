"""Captions: what a picture shows (high-level) and how good it is (low-level), and their file."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xpsr_jax.data.quality import describe
from xpsr_jax.errors import UserError

__all__ = ["Caption", "describe", "read_captions", "write_captions"]


@dataclass(frozen=True)
class Caption:
    """The two captions of one image; either may be empty.

    Attributes:
      high: what is in the picture.
      low: its quality: clarity, colour, noise, lighting.
    """

    high: str = ""
    low: str = ""


def read_captions(path: str | os.PathLike) -> dict[str, Caption]:
    """Reads JSON lines `{"image": relative path, "high": str, "low": str}`.

    Further keys are allowed, empty lines are skipped.

    Returns: captions by image path, with forward slashes.

    Raises:
      UserError: the file cannot be read or a line is wrong; names the file and the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the captions {path}: {error}") from error
    captions: dict[str, Caption] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        image, caption = _parse(line, where=f"{path}, line {number}")
        if image in captions:
            raise UserError(f"{path}, line {number}: a second caption for {image!r}; remove one of them.")
        captions[image] = caption
    return captions


def _parse(line: str, *, where: str) -> tuple[str, Caption]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno}).") from error
    if not isinstance(record, dict):
        raise UserError(f'{where}: expected an object {{"image": ..., "high": ..., "low": ...}}.')
    for key in ("image", "high", "low"):
        if not isinstance(record.get(key), str):
            raise UserError(f"{where}: {key!r} must be a text, got {json.dumps(record.get(key))}.")
    return Path(record["image"]).as_posix(), Caption(record["high"].strip(), record["low"].strip())


def write_captions(path: str | os.PathLike, captions: Mapping[str, Caption], *, source: str | None = None) -> None:
    """Writes JSON lines that `read_captions` reads, in the given order; the file appears when complete.

    Args:
      source: names the captioner.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            for image, caption in captions.items():
                record = {"image": image, "high": caption.high, "low": caption.low}
                file.write(json.dumps(record | ({"source": source} if source else {}), ensure_ascii=False) + "\n")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"Cannot write the captions {path}: {error}") from error
