"""What went wrong, said to the person who can put it right; and how foreign text is shown."""

import sys
import unicodedata
from collections.abc import Iterable

from tqdm import tqdm

# A message is at most one screen.
_MOST_CHARACTERS = 2000


class UserError(Exception):
    """A wrong input, file or setting. Its message is one line: what was wrong, where, what to do.

    The command lines print it without a traceback and exit with a non-zero code. Any other exception is a bug and keeps
    its traceback. The message is printable, whatever names and texts of other people are in it, and at most one screen
    long: of many details the first ten are shown, then how many more there are.

    Args:
      message: the line.
      details: further lines, one for each of several problems.

    Attributes:
      limit: how many details are shown.
    """

    limit = 10

    def __init__(self, message: str = "", *details: str):
        super().__init__(printable(message), *map(printable, details))

    def __str__(self) -> str:
        return _cut("\n".join(self.lines(self.limit)))

    def lines(self, limit: int) -> list[str]:
        """The message, the first `limit` details, and how many more there are."""
        message, *details = self.args
        more = len(details) - limit
        return [message, *details[:limit], *([f"  and {more} more"] if more > 0 else [])]


def printable(text: object) -> str:
    """The text with control characters, escape sequences and what has no encoding replaced by escapes such as \\x1b.

    A terminal then shows it and does nothing else, and any UTF-8 output can take it. Bytes of a file name that are not
    UTF-8 (Python has them as surrogates) are shown as \\xff.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text)


def in_one_line(text: object) -> str:
    """A foreign text as one `printable` line that is at most one screen long."""
    return _cut(printable(text))


def say(text: object, *, to_stderr: bool = False) -> None:
    """Prints a text for a person, its lines made `printable`, above the progress bars."""
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is not None:
        tqdm.write("\n".join(map(printable, str(text).split("\n"))), file=stream)
        stream.flush()


def listed(items: Iterable[object], *, separator: str = ", ", limit: int = 10) -> str:
    """The first `limit` items, then how many more there are: "a, b and 3 more"."""
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
