"""`xpsr preflight`: exit codes, errors, stored reports. Nothing is compiled for a TPU here."""

import dataclasses
import importlib.util
import os

import pytest

from tests.pods.test_report import FITS
from xpsr_jax.cli.preflight import main
from xpsr_jax.config import load_config
from xpsr_jax.inference.compilation import TPU_FLAGS, use_tpu_flags
from xpsr_jax.pods import preflight

ARGUMENTS = ["--config", "tests/training/tiny.py", "--topology", "v5e:4x4"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XPSR_JAX_CACHE", str(tmp_path))


@pytest.fixture
def compiled(monkeypatch):
    """The calls of `_compile`, which is replaced and returns `answer[0]`."""
    calls, answer = [], [FITS]

    def compile(config, topology, **options):
        calls.append((config, topology, options))
        return answer[0]

    monkeypatch.setattr(preflight, "_compile", compile)
    return calls, answer


def test_a_program_that_fits_exits_with_0_and_is_compiled_once(compiled, capsys):
    calls, _ = compiled
    assert main([*ARGUMENTS, "--batch-size", "16"]) == 0
    first = capsys.readouterr().out
    assert "fits" in first and "To use less memory" not in first
    assert main([*ARGUMENTS, "--batch-size", "16", "--name", "other", "--log-every", "7"]) == 0
    assert capsys.readouterr().out == first and len(calls) == 1
    config, topology, options = calls[0]
    assert (config.batch_size, topology, options) == (16, "v5e:4x4", {"sample": False, "effort": "quick"})


@pytest.mark.parametrize(
    "change", [["--batch-size", "32"], ["--sample"], ["--effort", "default"], ["--again"], ["--data.crop-size", "128"]]
)
def test_another_program_is_compiled(change, compiled):
    calls, _ = compiled
    assert main(ARGUMENTS) == main([*ARGUMENTS, *change]) == 0
    assert len(calls) == 2


def test_a_program_that_does_not_fit_exits_with_1_and_a_suggestion(compiled, capsys):
    compiled[1][0] = dataclasses.replace(FITS, peak=None, shortage="Ran out of memory on HBM")
    assert main([*ARGUMENTS, "--batch-size", "32"]) == 1
    out = capsys.readouterr().out
    assert "does not fit: Ran out of memory on HBM" in out and "--precision.remat" in out and "--accumulation 2" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nothing.py", "--topology", "v5e:4x4"], "config file nothing.py does not exist"),
        (["--config", "configs/xpsr.py", "--topology", "v4:4x4"], "--topology v4:4x4 is not one of v5e, v5p, v6e"),
        (["--config", "configs/xpsr.py", "--topology", "v5e"], "--topology v5e is not one of"),
        (["--config", "configs/xpsr.py", "--gpus", "3", "--mesh.fsdp", "2"], "do not fit 3 devices"),
    ],
)
def test_errors(arguments, message, capsys):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_without_the_compiler(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    assert main(ARGUMENTS) == 1
    assert 'pip install "jax[tpu]==' in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--config", "configs/xpsr.py"], [*ARGUMENTS, "--gpus", "8"]])
def test_wrong_arguments(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_gpus(capsys):
    assert main(["--config", "tests/training/tiny.py", "--gpus", "8", "--sample"]) == 0
    assert "the sampling step of 8 images lowers for 8 GPUs (CUDA)" in capsys.readouterr().out
    assert load_config("tests/training/tiny.py").batch_size == 8


def test_the_users_compiler_flags_have_precedence(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_run_space_to_batch=true --mine=1")
    use_tpu_flags()
    said = os.environ["LIBTPU_INIT_ARGS"].split()
    assert said[:2] == ["--xla_tpu_run_space_to_batch=true", "--mine=1"]
    assert {flag.partition("=")[0].removeprefix("--") for flag in said[2:]} == TPU_FLAGS.keys() - {
        "xla_tpu_run_space_to_batch"
    }
    assert "--xla_tpu_run_space_to_batch_on_new_platforms=false" in said
    use_tpu_flags()
    assert os.environ["LIBTPU_INIT_ARGS"].split() == said
