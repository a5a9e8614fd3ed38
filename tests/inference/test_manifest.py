import json
import os

import pytest

from xpsr_jax.inference.manifest import NAME, Manifest

SETTINGS = {"seed": 0, "high": "a line\u2028and another\u0085or a caf\u00e9"}


@pytest.fixture
def made(tmp_path):
    """A source and the output made from it. Their names are not UTF-8."""
    source, output = (tmp_path / os.fsdecode(name) for name in (b"caf\xe9.jpg", b"caf\xe9.png"))
    source.write_text("before")
    output.write_text("after")
    Manifest(tmp_path).add(output, output, source=source, settings=SETTINGS, seconds=1.0)
    return source, output


def test_a_line_is_read_back_unchanged(tmp_path, made):
    source, output = made
    manifest = Manifest(tmp_path)
    assert manifest.why_foreign(output, source) is None
    assert manifest.differences(output, SETTINGS) == []
    assert manifest.differences(output, SETTINGS | {"seed": 3}) == ["seed: was 0, is 3"]


def test_lines_that_are_not_ascii_and_one_that_was_cut_off(tmp_path, made):
    """The line was cut off within a character, and another process wrote after it."""
    source, output = made
    entry = json.loads((tmp_path / NAME).read_bytes())
    other = tmp_path / "other.png"
    other.write_text("after")
    line = json.dumps(entry | {"output": "other.png"}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    cut = '{"output": "caf\u00e9'.encode()[:-1]
    (tmp_path / NAME).write_bytes(b"\n".join([line, cut, json.dumps(entry).encode(), cut]))
    manifest = Manifest(tmp_path)
    for each in (output, other):
        assert manifest.why_foreign(each, source) is None
        assert manifest.differences(each, SETTINGS) == []
    manifest.add(other, other, source=source, settings={"seed": 5}, seconds=1.0)
    assert Manifest(tmp_path).differences(other, {"seed": 5}) == []
    assert Manifest(tmp_path).why_foreign(output, source) is None


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b"9" * 5000, b"3", b'{"output": [1]}', b'{"output": "x", "settings": 3}', b"x" * 2**21]
)
def test_foreign_lines_are_ignored(line, tmp_path, made):
    source, output = made
    (tmp_path / NAME).write_bytes(line + b"\n" + (tmp_path / NAME).read_bytes())
    assert Manifest(tmp_path).differences(output, SETTINGS) == []
    assert Manifest(tmp_path).why_foreign(tmp_path / "x", source) == "restored.jsonl has no line for it"


def test_the_reason_why_an_output_is_foreign(tmp_path, made):
    source, output = made
    manifest = Manifest(tmp_path)
    unknown = tmp_path / "unknown.png"
    assert manifest.why_foreign(unknown, source) == "restored.jsonl has no line for it"
    unknown.write_text("another")
    assert manifest.why_foreign(output, unknown) == f"it was made from {source}"
    source.write_text("changed")
    assert manifest.why_foreign(output, source) == f"{source} has changed since"
    source.unlink()
    assert "No such file" in manifest.why_foreign(output, source)
    output.write_text("changed")
    assert manifest.why_foreign(output, source) == "it is not the file that restored.jsonl records"
