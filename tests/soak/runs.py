"""Starts real processes of train.py with the tiny training, and reads the files of its run."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import load_file

from xpsr_jax.training.log import is_validation

ROOT = Path(__file__).parents[2]
CONFIG = "tests/training/tiny.py"


def command(run: Path, photos: Path, *, script: str = "train.py", config: str = CONFIG, **fields: Any) -> list[str]:
    """The command line of a run. A field such as `optimizer__ema=None` becomes --optimizer.ema None."""
    words = [sys.executable, script, "--config", config, "--run", str(run), "--images.folder", str(photos)]
    for name, value in fields.items():
        words += ["--" + name.replace("__", ".").replace("_", "-"), str(value)]
    return words


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
    """The environment of a process with that many CPU devices. Programs are compiled with few optimisations."""
    settings = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return os.environ | settings | variables


@dataclasses.dataclass
class Job:
    """Processes that were started together."""

    processes: list[subprocess.Popen[str]]

    def wait(self, timeout: float = 600) -> list[tuple[int, str]]:
        """Waits for all processes. Returns the exit code and the output of each."""
        ends = []
        try:
            for process in self.processes:
                out, _ = process.communicate(timeout=timeout)
                ends.append((process.returncode, out))
        finally:
            self.kill()
        return ends

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def start(words: list[str], *, processes: int = 1, devices: int = 1, slurm: bool = False, **options: Any) -> Job:
    """Starts the command in one process, or in several on this machine, which are joined by flags or like by SLURM."""
    options = {"cwd": ROOT, "env": environment(devices), "stderr": subprocess.STDOUT, "text": True} | options
    if processes == 1:
        return Job([subprocess.Popen(words, stdout=subprocess.PIPE, **options)])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    if slurm:
        job = {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(processes)}
        places = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(processes)]
        each = [options | {"env": options["env"] | job | place} for place in places]
        return Job([subprocess.Popen(words, stdout=subprocess.PIPE, **settings) for settings in each])
    joined = [
        [*words, "--coordinator", f"localhost:{port}", "--processes", str(processes), "--process", str(i)]
        for i in range(processes)
    ]
    return Job([subprocess.Popen(each, stdout=subprocess.PIPE, **options) for each in joined])


def ended_well(job: Job) -> list[str]:
    """Waits for all processes, which must succeed. Returns the output of each."""
    ends = job.wait()
    assert [code for code, _ in ends] == [0] * len(ends), ends
    return [out for _, out in ends]


def metrics(run: Path) -> list[dict[str, float]]:
    """The logged lines of steps, without their speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if not is_validation(line)]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in steps]


def checkpoint(run: Path, step: int, *, folder: str = "checkpoints") -> dict[str, Any]:
    """All arrays of a checkpoint, its position in the data and its log state."""
    path = run / folder / str(step)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path / "state").item_metadata.tree
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = checkpointer.restore(path / "state", args=ocp.args.PyTreeRestore(restore_args=kinds))
    rest = {item: json.loads((path / item / "metadata").read_text()) for item in ("data", "log")}
    return {"state": state} | rest


def assert_same_arrays(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert len(jax.tree.leaves(one)) > 4 * 40  # parameters, two moments, averages
    jax.tree.map(np.testing.assert_array_equal, one, other)


def weights(model: Path) -> dict[str, bytes]:
    """The bytes of every file of a model folder."""
    return {str(file.relative_to(model)): file.read_bytes() for file in sorted(model.rglob("*")) if file.is_file()}


def largest_difference(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """The largest difference of any term in any line, relative to the term."""
    assert [line.keys() for line in one] == [line.keys() for line in other]
    return max(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(one, other, strict=True) for name in b)


def parameters(model: Path) -> dict[str, np.ndarray]:
    """Every tensor of a model folder."""
    files = sorted(model.glob("*/*.safetensors"))
    return {f"{file.parent.name}.{key}": array for file in files for key, array in load_file(file).items()}
