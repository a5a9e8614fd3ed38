"""With JAX_PLATFORMS=cuda or tpu, JAX has no CPU device. JAX's CPU with another name simulates the accelerator."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path

import jax
import jaxlib.xla_client
import numpy as np
from jax.extend import backend

backend.register_backend_factory("accelerator", jaxlib.xla_client.make_cpu_client, priority=500)
try:
    jax.local_devices(backend="cpu")
except RuntimeError:
    print("there is no CPU")

from tests.training import tiny
from xpsr_jax.training.parameters import random_parameters
from xpsr_jax.training.structure import make_structure
from xpsr_jax.weights import orbax_files

structure = make_structure(tiny.config())
path = "text_encoder.final_layer_norm.bias"
arrays = random_parameters(structure, [path], seed=0)
orbax_files.write(arrays.items(), Path(sys.argv[1]))
print(arrays[path].shape, np.array_equal(orbax_files.read(Path(sys.argv[1]))[path].read(), arrays[path]))
"""


def test_parameters_are_initialised_and_written_without_a_cpu(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "accelerator", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "orbax")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "there is no CPU\n(8,) True\n"


def test_no_module_uses_private_parts_of_jax():
    """`jax._src` changes without notice."""
    files = [file for folder in ("xpsr_jax", "benchmarks", "configs") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert [file for file in files if "jax._src" in file.read_text(encoding="utf-8")] == []
