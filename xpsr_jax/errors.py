"""Errors that the user can correct, and safe printing of foreign text."""

import sys
import unicodedata
from collections.abc import Iterable

from tqdm import tqdm

# A message is at most one screen.
_MOST_CHARACTERS = 2000


class UserError(Exception):
    """A wrong input, file or setting. Its message is one line: what was wrong, where, what to do.

    The commands print it without a traceback, and exit with a non-zero code. Any other exception is a bug, and keeps
    its traceback. The message is always printable, even if it contains foreign names and texts, and fits on one screen.
    Of many details, the first ten are shown, then the number of the others.

    Args:
      message: the line.
      details: further lines, one for each of several problems.

    Attributes:
      limit: number of details that are shown.
    """

    limit = 10

    def __init__(self, message: str = "", *details: str):
        super().__init__(printable(message), *map(printable, details))

    def __str__(self) -> str:
        return _cut("\n".join(self.lines(self.limit)))

    def lines(self, limit: int) -> list[str]:
        """The message, the first `limit` details, and the number of the others."""
        message, *details = self.args
        more = len(details) - limit
        return [message, *details[:limit], *([f"  and {more} more"] if more > 0 else [])]


def printable(text: object) -> str:
    """Replaces control characters, escape sequences and characters without an encoding by escapes such as \\x1b.

    The result has no effect on a terminal, and can be written to any UTF-8 output. Bytes of a file name that are not
    UTF-8 (surrogates in Python) are shown as \\xff.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text)


def in_one_line(text: object) -> str:
    """A foreign text as one `printable` line, which fits on one screen."""
    return _cut(printable(text))


def say(text: object, *, to_stderr: bool = False) -> None:
    """Prints a text above the progress bars. Its lines are made `printable`."""
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is not None:
        tqdm.write("\n".join(map(printable, str(text).split("\n"))), file=stream)
        stream.flush()


def listed(items: Iterable[object], *, separator: str = ", ", limit: int = 10) -> str:
    """The first `limit` items and the number of the others: "a, b and 3 more"."""
    texts = [printable(item) for item in items]
    more = len(texts) - limit
    return separator.join(texts[:limit]) + (f" and {more} more" if more > 0 else "")


def _cut(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[: _MOST_CHARACTERS * 3 // 4]} [...] {text[-_MOST_CHARACTERS // 4 :]}"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
