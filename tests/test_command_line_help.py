"""The help of commands, with groups of options and real defaults; and shell completion."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from xpsr_jax.cli import app, caption, completion, convert, evaluate, prepare, restore
from xpsr_jax.cli.commands import COMMANDS
from xpsr_jax.cli.groups import grouped, parse


@dataclass(frozen=True)
class Inner:
    """Inner options.

    Attributes:
        size: size of the input, see
            `tile` (1) too.
        tile: auto: chosen by size.
        on: whether it is used.
    """

    size: int = 4
    tile: Annotated[int | None, tyro.conf.arg(aliases=["--t"])] = None
    on: bool = False


@dataclass(frozen=True)
class Base:
    """Shared options.

    Attributes:
        name: The name (default: the first one).
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    name: str | None = None


@dataclass(frozen=True)
class Options(Base):
    """Some options.

    Attributes:
        files: All files.
        words: Words to use.
        inner: Inner options.
    """

    words: str = ""
    inner: Annotated[Inner, tyro.conf.FlagConversionOff] = Inner()
    rest: int = 1


pytestmark = pytest.mark.usefixtures("terminal")


@pytest.fixture
def terminal(monkeypatch):
    """A terminal with 100 columns, which can show boxes."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", True)


GROUPS = {"input": ("files", "name", "words"), "size": ("inner.size", "inner.tile"), "way": ("inner.on",)}


def shown(kind, capsys, *words, name="test"):
    """The help of a command."""
    with pytest.raises(SystemExit) as end:
        parse(kind, [*words, "--help"], name=name, text="Does this.\n\n    xpsr test\n\nAnd that.")
    assert end.value.code == 0
    return capsys.readouterr().out


def test_grouped_options_are_parsed_into_the_dataclass():
    kind = grouped(Options, GROUPS)
    assert parse(kind, ["a", "b"], name="test", text="") == Options((Path("a"), Path("b")))
    words = ["a", "--rest", "3", "--t", "5", "--on", "True", "--name", "n"]
    assert parse(kind, words, name="test", text="") == Options((Path("a"),), "n", "", Inner(4, 5, True), 3)
    given = parse(grouped(Options, GROUPS, inner=Inner(size=9), rest=7), ["a"], name="test", text="")
    assert given == Options((Path("a"),), inner=Inner(size=9), rest=7)


def test_groups_texts_and_defaults_are_shown(capsys):
    text = shown(grouped(Options, GROUPS, inner=Inner(size=9)), capsys)
    assert text.startswith("usage: xpsr test [-h]")
    assert "  Does this.\n      xpsr test\n  And that.\n" in text
    assert re.findall(r"╭─ ([\w ]+) ─", text) == ["positional arguments", "options", "input options", "size options",
                                                  "way options"]  # fmt: skip
    plain = re.sub(r"[│\s]+", " ", text)
    assert "--rest INT (default: 1)" in plain
    assert "--name {None}|STR The name. (default: the first one)" in plain
    assert "--words STR Words to use. (default: none)" in plain
    assert "--size INT Size of the input, see --tile (1) too. (default: 9)" in plain
    assert "auto: chosen by size. (default: none)" in plain
    assert "--on {True,False} Whether it is used. (default: False)" in plain


COMMANDS_WITH_GROUPS = {
    "restore": (restore, ["files", "captions", "model", "sampling", "tiles", "devices"]),
    "convert": (convert, ["files", "weights"]),
    "evaluate": (evaluate, ["files", "measures", "devices"]),
    "app": (app, ["model", "address", "limits"]),
    "prepare records": (prepare, ["files", "captions", "photographs", "devices"]),
    "prepare pairs": (prepare, ["files", "captions", "photographs", "pairs", "devices"]),
    "caption llava": (caption, ["files", "questions", "model", "devices"]),
    "caption server": (caption, ["files", "questions", "server"]),
    "caption measured": (caption, ["files", "captions", "devices"]),
}


@pytest.mark.parametrize("name", COMMANDS_WITH_GROUPS)
def test_every_option_is_in_a_group_and_has_a_description(name, capsys):
    module, groups = COMMANDS_WITH_GROUPS[name]
    text = shown(module.arguments(), capsys, *name.split()[1:], name=name.split()[0])
    assert {len(line) for line in text.splitlines() if line.startswith("│")} == {100}
    boxes = re.findall(r"╭─ ([\w ]+) ─+╮\n(.*?)╰", text, re.DOTALL)
    titles = [title.removesuffix(" options") for title, _ in boxes]
    assert [title for title in titles if title != "positional arguments"] == ["options", *groups]
    for title, box in boxes:
        options = re.split(r"\n│ (?=-)", re.sub(r" *│\n│ {4,}", " ", f"\n{box}"))[1:]
        assert len(options) == 1 if title == "options" else options or title == "positional arguments"
        for option in options:
            said = re.sub(r"--?[\w-]+|\{[^}]*\}|\b[A-Z]{2,}\b|\(default: .*\)", "", option)
            assert re.search(r"[a-z]{2}", said), option
            # Users do not know what None means.
            assert "(default: None)" not in option or "None:" in option


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """A function that returns bash's completions of the last word of a command line."""
    if not shutil.which("bash"):
        pytest.skip("needs bash")
    script = tmp_path_factory.mktemp("completion") / "xpsr"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from xpsr_jax.cli.commands import main; sys.exit(main())",
            "completion",
            "bash",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    script.write_text(done.stdout)

    def complete(*words: str) -> list[str]:
        program = f'source {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _tyro_xpsr; echo "${{COMPREPLY[@]}}"'
        line = ["bash", "-c", program, "bash", *words]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()

    return complete


def test_the_shell_completes_commands_options_and_choices(bash):
    assert {*COMMANDS} <= {*bash("xpsr", "")}
    assert bash("xpsr", "rest") == ["restore"]
    assert bash("xpsr", "restore", "--sampler", "euler_") == ["euler_ancestral"]
    assert bash("xpsr", "prepare", "rec") == ["records"]
    assert bash("xpsr", "train", "--config", "few") == ["few_step"]
    assert bash("xpsr", "train", "--config", "tiny", "--optimizer.l") == ["--optimizer.learning-rate"]


def test_completion_of_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        completion.main(["ksh"])
    assert end.value.code == 2 and "bash" in capsys.readouterr().err
