"""benchmarks/accelerator.py at its reduced size, on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.soak
def test_every_program_is_measured_and_written(tmp_path):
    file = tmp_path / "figures.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "benchmarks.accelerator", "--size", "reduced", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text())
    programs = {program["name"]: program for program in figures["programs"]}
    assert {"product of matrices", "2 guided steps", "decoder", "training step, batch 1"} <= programs.keys()
    kernels = [program for name, program in programs.items() if "576 x 576" in name]
    assert len(kernels) == 6  # three kernels for CPUs, values and gradients
    assert all(0 < program["error"] < 0.02 for program in kernels)  # measured at most 4.6e-3, in bfloat16
    assert all(program["failure"] is None and program["seconds"] > 0 for program in programs.values())
    assert all(name in done.stdout for name in programs)


def test_wrong_and_failing_kernels_are_reported(monkeypatch):
    from benchmarks import accelerator, accelerator_programs

    def attended(kernel, shape, heads, *, gradient):
        if kernel == "two_pass":
            raise NotImplementedError("not here\nand more")
        program = accelerator_programs.Prepared(lambda: None, 1.0, 1.0, 1.0)
        return program, {"plain": 0.003, "chunked": 0.5}[kernel]

    monkeypatch.setattr(accelerator_programs, "attended", attended)
    plain, chunked, two_pass = accelerator.attentions((4, 4, 2), 1, accelerator.KERNELS["cpu"], gradient=False)
    assert plain.failure is None and plain.error == 0.003
    assert "differs from plain by more than 2e-02" in chunked.failure
    assert two_pass.failure == "not here" and two_pass.seconds is None
    assert "wrong" in accelerator.line(chunked, 1e12, None)
