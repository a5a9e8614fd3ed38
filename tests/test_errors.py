"""Messages fit on one screen, and have no effect on the terminal."""

import pickle

import pytest

from xpsr_jax.errors import UserError, in_one_line, listed, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, 日本語 é 👍", "plain, 日本語 é 👍"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("two\nlines\t", "two\\nlines\\t"),
        ("\udcff.png", "\\xff.png"),
        ("\ud800", "\\ud800"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("no\u202fbreak", "no\u202fbreak"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == str(UserError(text)) == shown
    shown.encode()


def test_long_lists_are_shortened():
    assert listed("abc") == "a, b, c"
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    text = str(UserError("many:", *(f"  {i}" for i in range(12))))
    assert text.splitlines() == ["many:", *(f"  {i}" for i in range(10)), "  and 2 more"]
    assert len(str(UserError("x" * 100_000))) < 2100


def test_errors_can_be_sent_between_processes():
    error = pickle.loads(pickle.dumps(UserError("first \x1b", "second")))
    assert str(error) == "first \\x1b\nsecond"


def test_a_foreign_text_becomes_one_line_that_fits_on_a_screen():
    assert in_one_line("good\nand \x1b[31mred") == "good\\nand \\x1b[31mred"
    assert len(shown := in_one_line("x" * 100_000)) < 2100 and " [...] " in shown
