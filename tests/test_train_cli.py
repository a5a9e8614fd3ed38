"""train.py: its output and its exit codes. Real training is tested in tests/training."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from xpsr_jax.cli import train
from xpsr_jax.config import Config, load_config
from xpsr_jax.config.files import config_names
from xpsr_jax.errors import UserError
from xpsr_jax.training import loop

TINY = "configs/tiny.py"
# Devices are already in use in this process, so it cannot join others.
ALONE = ("--distributed", "off")


def test_without_arguments_it_shows_the_help(capsys):
    assert train.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "usage: xpsr train --config NAME[:VARIANT]" in printed.err
    assert train.main(["--help"]) == 0
    out = capsys.readouterr().out
    named = re.findall(r"^  ([\w:]+)  ", out[out.index("configs:") :], re.MULTILINE)
    assert {name.partition(":")[0] for name in named} == set(config_names())
    assert all(load_config(name) for name in named)
    assert "--help" in out and "Run the same command again" in out


def names(kind, prefix=""):
    """The names of all fields on the command line."""
    for name, hint in typing.get_type_hints(kind).items():
        flag = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            yield from names(hint, f"{flag}.")
        elif flag != "validation.images":  # can only be set in a config file
            yield flag


def test_help_describes_every_field(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--config", TINY, "--help"])
    assert stopped.value.code == 0
    text = re.sub(r"[│\s]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out))
    assert len(text) > 10_000
    undocumented = []
    for name in names(Config):
        found = re.search(rf" --{re.escape(name)}[ ,](.*?\(default: )", text)
        assert found, f"--{name} is not in the help"
        # Fields of the networks' configurations are those of diffusers and transformers.
        if not name.startswith("networks.") and not re.search(r"[a-z]{2}.*\(default", words(found[1])):
            undocumented.append(name)
    assert undocumented == []


def words(text):
    """A field's help without its name, type and default: its description."""
    return re.sub(r"--[\w.-]+|\{[^}]*\}|\b[A-Z]{3,}\b", "", text)


def test_config_may_be_the_last_option(capsys):
    with pytest.raises(SystemExit):
        train.main(["--steps", "3", f"--config={TINY}:autoencoder", "-h"])
    assert "tiny_autoencoder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/nothing.py"], "config file configs/nothing.py does not exist"),
        (["--config", f"{TINY}:huge"], "has no variant 'huge'; it has default, autoencoder, end_to_end"),
        (["--config", TINY, "--steps", "0"], "steps must be at least 1, not 0"),
        (["--config", TINY, "--networks.base", "/nowhere"], "base model /nowhere does not exist; .*--networks.base"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert train.main([*ALONE, *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(f"error: .*{message}.*\n", printed.err)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--distributed", "off", "--process", "1"],
            "--distributed off cannot be used with --coordinator, --processes",
        ),
        (["--distributed", "on"], "coordinator_address should be defined.*--coordinator HOST:PORT, --processes N"),
        (["--processes", "2"], "coordinator_address should be defined.*--coordinator HOST:PORT, --processes N"),
        (["--coordinator", "localhost:1", "--processes", "2", "--process", "2"], "Got process_id=2, num_processes=2"),
    ],
)
def test_processes_that_cannot_be_joined(flags, message, monkeypatch, capsys):
    # JAX checks this first, and in this process it would be True.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    assert train.main(["--config", TINY, *flags]) == 1
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)


def test_unknown_field(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--config", TINY, "--stepz", "3"])
    assert stopped.value.code == 2
    assert "--steps" in capsys.readouterr().err


def test_fields_are_passed_to_the_training_and_its_result_sets_the_exit_code(monkeypatch, capsys):
    seen = []

    def pretend(result):
        def run(config):
            seen.append(config)
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(loop, "train", run)
        return train.main(
            [*ALONE, "--config", TINY, "--steps=7", "--optimizer.learning-rate", "0.5", "--images.folder", "x"]
        )

    assert pretend(Path("runs/a/model")) == 0
    assert capsys.readouterr().out == "model: runs/a/model\n"
    assert (seen[0].steps, seen[0].optimizer.learning_rate, seen[0].images.folder) == (7, 0.5, Path("x"))
    assert seen[0].batch_size == load_config(TINY).batch_size
    assert pretend(None) == 130
    assert pretend(KeyboardInterrupt()) == 130
    assert pretend(UserError("the loss became nan")) == 1
    assert "error: the loss became nan\n" in capsys.readouterr().err
