"""Hostile texts: JSON in general, and captions files for an image a.png.

The expected outcomes are as in `pictures`. True: it is read. False: it is refused. None: both are right.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.hostile.pictures import ESCAPE

DEEP = b"[" * 200_000
LONG_NUMBER = b"9" * 5000

# Refused by every reader of an object. The key `x` is an unknown field.
JSON: dict[str, bytes] = {
    "empty": b"",
    "no-json": b"{it is not",
    "cut": b'{"a": ',
    "a-list": b"[]",
    "a-text": b'"text"',
    "null": b"null",
    "deep": DEEP,
    "deep-field": b'{"x": ' + DEEP + b"]" * 200_000 + b"}",
    "long-number": b'{"x": ' + LONG_NUMBER + b"}",
    "not-a-number": b'{"x": NaN}',
    "infinity": b'{"x": -Infinity}',
    "twice-the-same": b'{"x": 1, "x": 2}',
    "half-a-character": b'{"x": "\\ud83d"}',
    "nul": b'{"x": "a\\u0000b"}',
    "not-utf-8": b'{"x": "\xff\xfe"}',
    "utf-16": '{"x": 1}'.encode("utf-16"),
    "binary": bytes(range(256)) * 40,
}


def _line(**fields: object) -> bytes:
    return json.dumps({"image": "a.png", "high": "a cat", "low": "sharp"} | fields).encode() + b"\n"


PLAIN = _line()
_CAPTIONS: dict[str, tuple[bytes, bool | None]] = {
    "plain": (PLAIN, True),
    "with-a-byte-order-mark": (b"\xef\xbb\xbf" + PLAIN, True),
    "with-blank-lines": (b"\r\n\n" + PLAIN + b"\n\n", True),
    "without-its-last-end": (PLAIN[:-1], True),
    "escape-sequences": (_line(high=f"{ESCAPE}a cat\x07", low="\x9b0m", source=f"{ESCAPE}me"), True),
    "right-to-left": (_line(high="\u202egnp.tac"), True),
    "long": (_line(high="very " * 20_000), None),
    "not-utf-8": (PLAIN + b'{"image": "b.png", "high": "\xff", "low": ""}\n', False),
    "utf-16": (PLAIN.decode().encode("utf-16"), False),
    "cut": (PLAIN + PLAIN[:20], False),
    "half-a-character": (_line(high="A cat smiles \ud83d"), False),
    "half-a-character-in-its-name": (PLAIN + _line(image="\ud83d.png"), False),
    "nul": (_line(low="a\0b"), False),
    "nul-in-its-name": (PLAIN + _line(image="a\0.png"), False),
    "deep": (PLAIN + DEEP + b"\n", False),
    "deep-key": (PLAIN[:-2] + b', "x": ' + DEEP + b"]" * 200_000 + b"}\n", False),
    "long-number": (PLAIN[:-2] + b', "x": ' + LONG_NUMBER + b"}\n", False),
    "not-a-number": (PLAIN[:-2] + b', "x": NaN}\n', False),
    "huge-line": (PLAIN[:-2] + b', "x": "' + b"a" * 2**23 + b'"}\n', False),
    "control-characters": (b'{"image": "a.png", "high": "a\x1b[31m", "low": ""}\n', False),
    "a-list": (PLAIN + b"[]\n", False),
    "a-number": (b"7\n", False),
    "null": (b"null\n", False),
    "without-low": (b'{"image": "a.png", "high": ""}\n', False),
    "image-null": (_line(image=None), False),
    "image-a-list": (_line(image=["a.png"]), False),
    "high-a-number": (_line(high=7), False),
    "high-an-object": (_line(high={"a": 1}), False),
    "twice-the-same": (PLAIN * 2, False),
    "a-key-twice": (b'{"image": "b.png", "image": "a.png", "high": "", "low": ""}\n', None),
    "one-array": (b"[" + PLAIN.strip() + b"]\n", False),
    "sha256-a-list": (_line(sha256=[]), None),
    "whole-a-number": (_line(high_whole=7), None),
    "image-without-a-name": (PLAIN + _line(image=""), None),
    "image-elsewhere": (PLAIN + _line(image="../../../../etc/passwd"), None),
    "image-absolute": (PLAIN + _line(image="/etc/passwd"), None),
    "image-long": (PLAIN + _line(image="a/" * 5000), None),
    "binary": (bytes(range(256)) * 40, False),
}


def _written(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def sparse(path: Path) -> None:
    """A sparse file with the size of a terabyte."""
    with open(path, "wb") as file:
        file.truncate(2**40)


# Paths that are not regular files.
NOT_FILES: dict[str, Callable[[Path], None]] = {
    "a-pipe": os.mkfifo,
    "a-folder": lambda path: path.mkdir(),
    "to-zeros": lambda path: path.symlink_to("/dev/zero"),
    "to-itself": lambda path: path.symlink_to(path.name),
    "to-nothing": lambda path: path.symlink_to("nothing"),
    "a-terabyte": sparse,
}

CAPTIONS: dict[str, tuple[Callable[[Path], None], bool | None]] = {
    f"{name}.jsonl": (_written(content), right) for name, (content, right) in _CAPTIONS.items()
} | {f"{name}.jsonl": (make, False) for name, make in NOT_FILES.items()}
