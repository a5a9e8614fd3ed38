"""Reads foreign JSON within limits, with errors of one line; and writes JSON."""

import collections
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

from xpsr_jax.errors import UserError
from xpsr_jax.files import open_regular, read_regular, write_text

# Limit for a configuration or an index. Stable Diffusion's largest has 0.2 MB. In memory, JSON may need 25 times more.
MAX_BYTES = 2**24
# Limit for a line of JSON lines, which has two captions and other data of an image.
MAX_LINE_BYTES = 2**20
# No real file has longer numbers, and the time to parse them grows with the square of their length.
_MAX_DIGITS = 40
# Escapes that need a check: halves of surrogate pairs, and NUL. Of a valid pair, only the first half matches.
_SUSPICIOUS = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)")


def read_json(file: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Reads a JSON object.

    Raises UserError if the file is not a regular file, is larger than `max_bytes`, or does not hold a JSON object. It
    also refuses NaN, duplicate keys, numbers with too many digits, nesting that is too deep, and texts with half a
    character or NUL.
    """
    return parse_json(read_regular(file, max_bytes=max_bytes), file)


def parse_json(data: bytes, where: object) -> dict[str, Any]:
    """Like `read_json`, for bytes that were read from `where`."""
    value = _parsed(data, where)
    if not isinstance(value, dict):
        raise UserError(f"{where} must hold a JSON object, not {type(value).__name__}")
    return value


def read_json_lines(
    file: Path,
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    cut_off: Literal["error", "skip"] = "error",
    allow_nan: bool = False,
) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines, each with its position ("FILE, line N"). Empty lines are skipped.

    Args:
      cut_off: what to do with a last line without a newline, whose writer may have been killed: "error": it must be
        valid. "skip": it is ignored.
      allow_nan: accept NaN and Infinity, which Python writes.

    Raises the errors of `read_json` with the number of the line, and UserError for lines above `max_line_bytes`.
    """
    with open_regular(file) as lines:
        number = 0
        while line := _line(lines, file, max_line_bytes):
            number += 1
            where = f"{file}, line {number}"
            if len(line) > max_line_bytes:
                raise UserError(f"{where} is longer than the limit of {max_line_bytes:,} bytes")
            if cut_off == "skip" and not line.endswith(b"\n"):
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield where, _parsed(line.rstrip(b"\r\n"), where, in_line=True, allow_nan=allow_nan)


def write_json(data: Mapping[str, Any], file: Path, *, indent: int = 2) -> None:
    """Writes a JSON object in a readable layout. Raises UserError if writing fails."""
    write_text(json.dumps(data, indent=indent) + "\n", file)


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings after writing them to JSON and reading them again: tuples become lists, and paths become texts."""
    read: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return read


def _parsed(data: bytes, where: object, *, in_line: bool = False, allow_nan: bool = False) -> Any:
    constant = float if allow_nan else _refuse_constant
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, parse_int=_integer, parse_constant=constant, object_pairs_hook=_object)
        if _SUSPICIOUS.search(data):
            _check_texts(value, where, "")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not valid JSON: byte {error.start + 1} is not UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if in_line else f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{where} is not valid JSON: {error.msg}, {place}") from error
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where} is not valid JSON: it is nested too deeply") from error
    return value


def _line(lines: BinaryIO, file: Path, limit: int) -> bytes:
    try:
        return lines.readline(limit + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a valid JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"duplicate key {twice[:100]!r}")
    return found


def _check_texts(value: Any, where: object, path: str) -> None:
    """Raises UserError for a text with NUL or half a surrogate pair. No file name or prompt can contain these.

    U+DC80 to U+DCFF are allowed: they represent bytes of a file name that are not UTF-8.
    """
    if isinstance(value, dict):
        for key, each in value.items():
            _check_texts(key, where, path)
            _check_texts(each, where, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, each in enumerate(value):
            _check_texts(each, where, f"{path}[{i}]")
    elif isinstance(value, str):
        for name, bad in (
            ("NUL", "\0" in value),
            ("a lone surrogate", re.search("[\ud800-\udc7f\udd00-\udfff]", value)),
        ):
            if bad:
                raise UserError(f"{where}: {path[:200] or 'a text'} holds {name}, which is not allowed")
