"""Caption files: round trip, and errors that name the line."""

import json

import pytest

from xpsr_jax.data.captions import Caption, read_captions, write_captions
from xpsr_jax.errors import UserError


def test_round_trip(tmp_path):
    captions = {"b/ä.png": Caption("Two boats.\nMore", "sharp"), "a.png": Caption("", "")}
    path = tmp_path / "captions.jsonl"
    write_captions(path, captions, source="someone")
    assert read_captions(path) == captions and list(read_captions(path)) == ["b/ä.png", "a.png"]
    assert json.loads(path.read_text(encoding="utf-8").split("\n")[0])["source"] == "someone"
    assert [p.name for p in tmp_path.iterdir()] == ["captions.jsonl"]


def test_hand_written_files(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(
        '\ufeff{"image": "./x.png", "high": " a cat ", "low": "dark", "sha256": "00"}\r\n\n', encoding="utf-8"
    )
    assert read_captions(path) == {"x.png": Caption("a cat", "dark")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"c\.jsonl, line 2 is not valid JSON: .* column 2"),
        ("[]", r"line 2: expected an object"),
        ('{"image": "b", "high": "h"}', r"line 2: 'low' must be a text, got null"),
        ('{"image": "b", "high": 3, "low": ""}', r"line 2: 'high' must be a text, got 3"),
        ('{"image": "b", "high": "\\udcff", "low": ""}', r"line 2: 'high' has an incomplete character"),
        ('{"image": "\\ud800", "high": "", "low": ""}', r"line 2: image holds a lone surrogate"),
        ('{"image": "b\\u0000", "high": "", "low": ""}', r"line 2: image holds NUL"),
        ('{"image": "", "high": "", "low": ""}', r"line 2: 'image' is empty"),
        ('{"image": "b", "image": "c", "high": "", "low": ""}', r"line 2 .* duplicate key 'image'"),
        ('{"image": "b", "high": "", "low": "", "n": ' + "9" * 5000 + "}", r"line 2 .* a number of 5000 digits"),
        ("[" * 100_000, r"line 2 .* nested too deeply"),
        ('{"image": "./a", "high": "", "low": ""}', r"line 2: a second caption for 'a'"),
    ],
)
def test_wrong_lines(tmp_path, line, message):
    path = tmp_path / "c.jsonl"
    path.write_text('{"image": "a", "high": "", "low": ""}\n' + line)
    with pytest.raises(UserError, match=message):
        read_captions(path)


def test_names_that_are_not_utf8(tmp_path):
    """They are read back unchanged. Only their lines are escaped."""
    path = tmp_path / "c.jsonl"
    captions = {"\udcff.png": Caption("a cat", "dark"), "ä.png": Caption("ein Tier", "dunkel")}
    write_captions(path, captions)
    assert read_captions(path) == captions
    assert path.read_text().splitlines()[1].startswith('{"image": "ä.png"')


def test_unreadable_and_unwritable(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl cannot be read: No such file"):
        read_captions(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary, line 1 is not valid JSON: byte 1 is not UTF-8"):
        read_captions(tmp_path / "binary")
    with pytest.raises(UserError, match="cannot be written"):
        write_captions(tmp_path / "no" / "folder.jsonl", {})


def test_captions_are_found_in_any_unicode_form_of_their_path(tmp_path):
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    write_captions(tmp_path / "a.jsonl", {composed: Caption("one", "")})
    captions = read_captions(tmp_path / "a.jsonl")
    assert captions[decomposed] == captions[composed] == Caption("one", "") and decomposed in captions
    assert list(captions) == [composed] and captions.get("cafe.png") is None
    write_captions(tmp_path / "b.jsonl", {composed: Caption("one", ""), decomposed: Caption("two", "")})
    assert read_captions(tmp_path / "b.jsonl")[decomposed] == Caption("two", "")
