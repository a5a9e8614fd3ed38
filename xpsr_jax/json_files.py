"""JSON from outside, read within limits and with one line of error; and JSON written."""

import collections
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

from xpsr_jax.errors import UserError
from xpsr_jax.files import open_regular, read_regular, write_text

# Of a configuration or an index: Stable Diffusion's largest is 0.2 MB. In memory JSON may need 25 times as much.
MAX_BYTES = 2**24
# Of a line of JSON lines: two captions and whatever else is told of an image.
MAX_LINE_BYTES = 2**20
# Longer numbers are in no file of this kind, and take time as the square of their length.
_MAX_DIGITS = 40
# Escapes of what may not be in a text: halves of surrogate pairs, and NUL. Of pairs, only the first half is seen.
_SUSPICIOUS = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)")


def read_json(file: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """A JSON object.

    Raises UserError if the file is no regular file, is larger than `max_bytes`, or holds none. Also refused is what is
    no JSON strictly (NaN, a key that is there twice) or cannot be meant: numbers of many digits, deep nesting, texts
    with half a character or NUL.
    """
    return parse_json(read_regular(file, max_bytes=max_bytes), file)


def parse_json(data: bytes, where: object) -> dict[str, Any]:
    """`read_json` of what was read already from `where`."""
    value = _parsed(data, where)
    if not isinstance(value, dict):
        raise UserError(f"{where} should hold a JSON object, not {type(value).__name__}")
    return value


def read_json_lines(
    file: Path,
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    cut_off: Literal["error", "skip"] = "error",
    allow_nan: bool = False,
) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines, each with where it is ("FILE, line N"); empty lines are skipped.

    Args:
      cut_off: a line that lacks its end is an error if it is not whole, or is left out: what wrote it was killed.
      allow_nan: read NaN and Infinity, which Python writes.

    Raises UserError as `read_json`, with the number of the line; and for lines longer than `max_line_bytes`.
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
    """Writes a JSON object for people to read. Raises UserError where the system refuses."""
    write_text(json.dumps(data, indent=indent) + "\n", file)


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are when they were written to JSON and read again: lists for tuples, texts for paths."""
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
    raise ValueError(f"{text} is not a number that JSON has")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:100]!r} is there twice")
    return found


def _check_texts(value: Any, where: object, path: str) -> None:
    """Raises UserError for a text with NUL or half a surrogate pair, which no file name or prompt can have.

    Halves that stand for a byte of a file name that is not UTF-8 (U+DC80 to U+DCFF) are allowed.
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
            ("half a character", re.search("[\ud800-\udc7f\udd00-\udfff]", value)),
        ):
            if bad:
                raise UserError(f"{where}: {path[:200] or 'a text'} holds {name}, which cannot be in a text")
