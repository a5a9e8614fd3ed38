"""Foreign JSON: every problem is an error of one line, with the file and the position."""

import pytest

from xpsr_jax.errors import UserError
from xpsr_jax.json_files import read_json, read_json_lines, write_json

_WRONG = {
    b"": "Expecting value, line 1, column 1",
    b"{": "Expecting property name",
    b'{"a":\n 1,}': "line 2, column",
    b"[1]": "must hold a JSON object, not list",
    b"3": "must hold a JSON object, not int",
    b'{"a": NaN}': "NaN is not a valid JSON number",
    b'{"a": -Infinity}': "-Infinity is not a valid JSON number",
    b'{"a": ' + b"9" * 5000 + b"}": "a number of 5000 digits",
    b'{"a": 1, "a": 2}': "duplicate key 'a'",
    b'{"a": ' + b"[" * 100_000 + b"}": "nested too deeply",
    b'{"a": "\xff"}': "byte 8 is not UTF-8",
    b'{"a": {"b": ["\\ud800"]}}': r"a.b\[0\] holds a lone surrogate",
    b'{"a": "x\\u0000"}': "a holds NUL",
    b'{"\\uDC00": 1}': "a text holds a lone surrogate",
    b'{"a": "\x1b"}': "Invalid control character",
}


@pytest.mark.parametrize(("data", "problem"), _WRONG.items(), ids=range(len(_WRONG)))
def test_problems_are_one_line(data, problem, tmp_path):
    file = tmp_path / "file.json"
    file.write_bytes(data)
    with pytest.raises(UserError, match=problem) as caught:
        read_json(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_valid_json_is_read(tmp_path):
    file = tmp_path / "file.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00 \\udcff", "b": 1e999, "c": 123456789012345678901234567890}')
    assert read_json(file) == {"a": "😀 \udcff", "b": float("inf"), "c": 123456789012345678901234567890}
    write_json({"a": "\udcff"}, file)
    assert read_json(file) == {"a": "\udcff"}
    with pytest.raises(UserError, match="more than the limit of 10"):
        read_json(file, max_bytes=10)


def test_json_lines(tmp_path):
    file = tmp_path / "file.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": 2}')
    assert list(read_json_lines(file)) == [(f"{file}, line 1", {"a": 1}), (f"{file}, line 4", {"a": 2})]
    file.write_bytes(b'{"a": 1}\n{"a": \x00}\n')
    with pytest.raises(UserError, match="line 2 is not valid JSON: Expecting value, column 7"):
        list(read_json_lines(file))
    file.write_bytes(b'{"a": 1}\n"' + b"x" * 100 + b'"\n')
    with pytest.raises(UserError, match="line 2 is longer than the limit of 50 bytes"):
        list(read_json_lines(file, max_line_bytes=50))
