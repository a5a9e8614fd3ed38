"""Errors, signals and exit codes of commands; and their help, which must not import JAX."""

import ast
import importlib
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from xpsr_jax.cli import caption, convert, evaluate, preflight, prepare
from xpsr_jax.cli.commands import COMMANDS
from xpsr_jax.cli.commands import main as xpsr
from xpsr_jax.cli.run import command
from xpsr_jax.cli.start import start
from xpsr_jax.errors import UserError, say
from xpsr_jax.version import __version__

ROOT = Path(__file__).parents[1]


def run(function, capsys) -> tuple[int, str]:
    """Runs a command that calls the function; returns its exit code and its output on stderr."""
    main = command(interrupted="interrupted; nothing was written", lower="lower --batch-size")(function)
    return main([]), capsys.readouterr().err


def test_the_exit_code_is_what_the_function_returns(capsys):
    assert run(lambda argv: None, capsys) == (0, "")
    assert run(lambda argv: 1, capsys) == (1, "")


def test_an_error_that_users_can_correct_is_one_line(capsys):
    def wrong(argv):
        raise UserError("photo.png: no such file")

    assert run(wrong, capsys) == (1, "error: photo.png: no such file\n")


@pytest.fixture
def ctrl_c():
    """Turns the handling of Ctrl-C on. It is off if a shell runs the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_130_and_removes_its_files(number, capsys, monkeypatch):
    removed = []

    def work(argv):
        try:
            signal.raise_signal(number)
        finally:
            removed.append(True)

    assert run(work, capsys) == (130, "interrupted; nothing was written\n")
    assert removed == [True] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_names_that_cannot_be_printed_are_escaped(monkeypatch):
    """The terminal supports only ASCII. A name that is not UTF-8 cannot be encoded anywhere."""
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, "ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)

    def work(argv):
        for text in ("caf\u00e9 \udce9.png", "\x1b[31mred\x1b[0m"):
            say(text)
        print("5 \u00d7 3")

    assert command(interrupted="", lower="")(work)([]) == 0
    stream.flush()
    assert written.getvalue() == b"caf\\xe9 \\xe9.png\n\\x1b[31mred\\x1b[0m\n5 \\xd7 3\n"
    assert stream.errors == "strict"


def test_foreign_text_is_printed_only_by_say():
    """`errors.say` makes a text printable. The modules listed here print no foreign text."""
    allowed = {"errors.py", "cli/run.py", "app/passwords.py", "app/door.py"}
    package = ROOT / "xpsr_jax"
    found = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "tqdm.write", "sys.stdout.write")
    }
    assert found == allowed


def test_a_command_also_runs_in_a_thread(capsys):
    codes = []
    main = command(interrupted="", lower="")(lambda argv: 3)
    thread = threading.Thread(target=lambda: codes.append(main([])))
    thread.start()
    thread.join()
    assert codes == [3]


class OutOfMemoryError(RuntimeError):
    """An error with the name of PyTorch's."""


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes."), "the device"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB."), "the device"),
        (MemoryError("Unable to allocate 7 GiB"), "this machine"),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_to_lower(error, where, capsys):
    def work(argv):
        raise error

    assert run(work, capsys) == (1, f"error: {where} is out of memory: lower --batch-size\n")


def test_a_real_allocation_that_is_too_large_is_one_line(capsys):
    def work(argv):
        jax.numpy.zeros((2**46,), "uint8").block_until_ready()

    assert run(work, capsys) == (1, "error: the device is out of memory: lower --batch-size\n")


def test_a_file_that_the_system_refuses_is_one_line(capsys):
    def work(argv):
        Path("a" * 300, "b").exists()

    assert run(work, capsys) == (1, f"error: {'a' * 300}/b: File name too long\n")


def test_any_other_error_keeps_its_traceback(capsys):
    for error in (jax.errors.JaxRuntimeError("INTERNAL: bug"), KeyError("bug")):

        def work(argv, error=error):
            raise error

        with pytest.raises(type(error), match="bug"):
            run(work, capsys)


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (caption.main, "measured . --output c.jsonl --workers 0", "--workers must be at least 1, not 0"),
        (caption.main, "measured . --output c.jsonl --limit -1", "--limit must be at least 1, not -1"),
        (caption.main, "server . --output c.jsonl --wait nan", "--wait must be a finite number, not nan"),
        (caption.main, "server . --output c.jsonl --timeout 0", "--timeout must be at least 0.1, not 0.0"),
        (caption.main, "server . --output c.jsonl --retries -1", "--retries must be at least 0, not -1"),
        (caption.main, "report c.jsonl --images . --output c.html --count 0", "--count must be at least 1, not 0"),
        (evaluate.main, "--restored . --reference . --batch-size 0", "--batch-size must be at least 1, not 0"),
        (prepare.main, "records . --output out --workers -1", "--workers must be at least 1, not -1"),
        (prepare.main, "records . --output out --images-per-file 0", "--images-per-file must be at least 1, not 0"),
        (prepare.main, "pairs . --output out --rounds 0", "--rounds must be at least 1, not 0"),
        (prepare.main, "validation . --output out --crop-size 0", "--crop-size must be at least 1, not 0"),
        (convert.main, ". --output out --shard-gb nan", "--shard-gb must be a finite number, not nan"),
        (convert.main, ". --output out --shard-gb 0", "--shard-gb must be above 0, not 0.0"),
        (preflight.main, f"--config {ROOT / 'configs' / 'tiny.py'} --gpus 0", "--gpus must be at least 1, not 0"),
    ],
)
def test_numbers_out_of_range_are_refused(main, words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 1
    assert capsys.readouterr().err.rstrip().endswith(said)
    assert not list(tmp_path.iterdir())


# Prints which slow packages were imported. JAX, for example, takes seconds to import.
_HELP = """
import runpy, sys
file, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_path(file, run_name="__main__") if file.endswith(".py") else runpy.run_module(file, run_name="__main__")
except SystemExit as end:
    heavy = set("jax flax torch grain transformers cv2 gradio huggingface_hub".split())
    print(end.code, *sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "words",
    [
        ["sample.py"],
        ["train.py", "--config", "configs/xpsr.py"],
        ["convert_weights.py"],
        ["xpsr_jax.caption"],
        ["xpsr_jax.evaluate"],
        ["xpsr_jax.prepare_data", "records"],
        ["xpsr_jax.preflight"],
        ["xpsr_jax.app"],
        ["xpsr_jax.demo"],
        ["xpsr_jax", "restore", "--model", "owner/name"],
    ],
    ids=" ".join,
)
def test_help_does_not_import_jax(words):
    done = subprocess.run([sys.executable, "-c", _HELP, *words, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0", done.stdout + done.stderr
    assert len(done.stdout) > 100


# The same for all commands of `xpsr` in one process. JAX would be found after the first command that imports it.
_ALL_HELP = """
import contextlib, io, sys
from xpsr_jax.cli.commands import COMMANDS, main
more = ["train", "--config", "tiny"], ["caption", "server"], ["prepare", "pairs"]
for words in [[], *([name] for name in COMMANDS), *more]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            code = main([*words, "--help"])
        except SystemExit as end:
            code = end.code
    usage = f"usage: {' '.join(['xpsr', *words])}"
    heavy = sorted(set("jax flax torch grain transformers cv2 gradio huggingface_hub".split()) & set(sys.modules))
    print(*words, code, out.getvalue().startswith(usage), len(out.getvalue()) > 100, *heavy)
"""


def test_help_of_every_command_of_xpsr_imports_no_jax(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _ALL_HELP], cwd=tmp_path, env=in_checkout(), capture_output=True, text=True
    )
    words = [*COMMANDS, "train --config tiny", "caption server", "prepare pairs"]
    assert done.stdout.splitlines() == ["0 True True", *(f"{each} 0 True True" for each in words)], done.stderr


def in_checkout() -> dict[str, str]:
    """The environment of a process that must find this package from any folder."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def test_python_m_is_the_same_as_xpsr(tmp_path):
    def run(*words):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=in_checkout(), capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    script = "import sys; from xpsr_jax.cli.commands import main; sys.exit(main())"
    for words in (["--version"], ["evaluate", "--restored", "a"]):
        assert run("-m", "xpsr_jax", *words) == run("-c", script, *words)
    assert run("-m", "xpsr_jax", "--version") == (0, f"xpsr_jax {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: xpsr COMMAND"),
        (["restor", "a.png"], "error: unknown command 'restor'; did you mean restore? (xpsr --help)\n"),
        (["zoom"], "error: unknown command 'zoom'; commands are restore, "),
    ],
)
def test_unknown_commands(words, said, capsys):
    assert xpsr(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(said)


def test_a_command_is_given_its_words(monkeypatch, tmp_path, capsys):
    """xpsr returns the command's exit code, with words as arguments or with those of the process."""
    missing = ["evaluate", "--restored", str(tmp_path / "a"), "--reference", str(tmp_path / "b")]
    assert xpsr(missing) == 1
    expected = capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["xpsr", *missing])
    assert xpsr() == 1
    assert capsys.readouterr().err == expected and expected.startswith("error: ") and str(tmp_path) in expected


def test_ctrl_c_while_a_command_is_being_imported(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("xpsr_jax.cli.start.importlib", SimpleNamespace(import_module=interrupted))
    assert start("restore") == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_during_an_import_is_delayed_until_its_end(tmp_path, monkeypatch, capsys):
    """Otherwise jaxlib could crash, or end with a traceback."""
    (tmp_path / "interrupted_import.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []

    def work(argv):
        seen.append(importlib.import_module("interrupted_import").whole)
        threading.Event().wait(20)
        seen.append("not interrupted")

    assert run(work, capsys) == (130, "interrupted; nothing was written\n")
    assert seen == [True]
