"""XLA's estimates for Stable Diffusion 1.5's stock UNet on TPUs: ours and diffusers' in Flax, compiled the same way.

python benchmarks/pod_estimates.py --anchor PYTHON

PYTHON is the interpreter of an environment with diffusers 0.39, flax and transformers below 5. Without it only our
network is compiled. The benchmark needs `pip install "jax[tpu]"`, but no TPU. Each row takes minutes.

The programs are the forward pass on v5e:2x2, and the gradient of all parameters on v5e:4x4. They are in bfloat16,
without custom kernels, with 2 samples per chip and parameters split over all chips. For the gradient, their whole
function is rematerialised, and ours according to `--remat`.

An estimate is a sum over operations: for each, the larger of products / peak rate and bytes / bandwidth. The body of a
loop counts once, so the compared programs must not have loops. The table shows their number. Our network computes the
scores of attention twice instead of storing them. This is visible in the count of operations.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.command_line import command_line
from xpsr_jax import sharding
from xpsr_jax.config import Mesh
from xpsr_jax.errors import UserError
from xpsr_jax.models.attention import TPU_KERNEL
from xpsr_jax.models.configs import UNetConfig
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.parameters import parameters
from xpsr_jax.pods import chips, compiling
from xpsr_jax.weights.networks import UNET, abstract

PROGRAMS = {"forward": ("v5e:2x2", False), "gradient": ("v5e:4x4", True)}
SAMPLES = 2


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        anchor: Python interpreter of the environment with diffusers 0.39.
        program: Programs to compile: forward, gradient.
        remat: Recompute our network block by block in the backward pass.
        flags: Compiler flags for the network of diffusers: none, or ours.
    """

    anchor: Path | None = None
    program: tuple[str, ...] = tuple(PROGRAMS)
    remat: bool = False
    flags: tuple[str, ...] = ("none", "ours")


def run(arguments: Arguments) -> None:
    print("| program | network | ms | TFLOP | GB moved | GiB temporaries | loops | ours / its ms |\n|" + "---|" * 8)
    jax.config.update("jax_platforms", "cpu")
    for name in arguments.program:
        topology, gradient = PROGRAMS[name]
        ours = measure_ours(topology, gradient=gradient, remat=arguments.remat)
        show(name, "ours", ours, ours)
        if arguments.anchor is not None:
            for flags in arguments.flags:
                theirs = measure_anchor(arguments.anchor, topology, gradient=gradient, ours=flags == "ours")
                show(name, f"diffusers, flags: {flags}", theirs, ours)


def measure_ours(topology: str, *, gradient: bool, remat: bool) -> dict[str, float]:
    mesh = chips.make_pod_mesh(topology, Mesh())
    dtype = jnp.float32 if gradient else jnp.bfloat16
    compute = Compute(dtype=jnp.bfloat16, param_dtype=dtype, attention=TPU_KERNEL, remat=remat)
    module = abstract(UNET, UNetConfig(conditional_attention=False), compute=compute)
    graph, state = nnx.split(module)
    shapes = {path: jax.ShapeDtypeStruct(v.shape, v.dtype) for path, v in parameters(module).items()}
    shardings = sharding.parameter_shardings(shapes, mesh)

    def place(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])

    placed = jax.tree_util.tree_map_with_path(place, state)
    where, batch = sharding.batch_sharding(mesh), SAMPLES * mesh.size
    inputs = (
        jax.ShapeDtypeStruct((batch, 64, 64, 4), jnp.bfloat16, sharding=where),
        jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=where),
        jax.ShapeDtypeStruct((batch, 77, 768), jnp.bfloat16, sharding=where),
    )

    def forward(state: Any, *inputs: Any) -> Any:
        with sharding.gathering_kernels(mesh):
            return nnx.merge(graph, state)(*inputs)

    def loss_gradient(state: Any, *inputs: Any) -> Any:
        gradients = jax.grad(lambda state: jnp.mean(forward(state, *inputs) ** 2))(state)
        return jax.lax.with_sharding_constraint(gradients, jax.tree.map(lambda leaf: leaf.sharding, placed))

    lowered = jax.jit(loss_gradient if gradient else forward).lower(placed, *inputs)
    compiled, _ = compiling.compile_for_pod(lowered, "quick", what=f"compiling ours for {topology}")
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert cost is not None and memory is not None
    return {
        "seconds": cost["optimal_seconds"],
        "flops": cost["flops"],
        "moved": cost["bytes accessed"],
        "temporaries": memory.temp_size_in_bytes,
        "loops": len(re.findall(r" while\(", compiled.as_text() or "")),
    }


def measure_anchor(python: Path, topology: str, *, gradient: bool, ours: bool) -> dict[str, float]:
    options = compiling.options("quick") if ours else compiling.options("quick", flags={})
    task = {"topology": topology, "gradient": gradient, "samples": SAMPLES, "options": options}
    environment = dict(os.environ)
    if (libtpu := importlib.util.find_spec("libtpu")) and libtpu.submodule_search_locations:
        environment.setdefault("TPU_LIBRARY_PATH", str(Path(libtpu.submodule_search_locations[0]) / "libtpu.so"))
    script = Path(__file__).with_name("pod_anchor.py")
    print(f"compiling the network of diffusers for {topology}", file=sys.stderr)
    run = subprocess.run([python, script, json.dumps(task)], env=environment, text=True, capture_output=True)
    if run.returncode:
        reason = run.stderr.strip().splitlines()[-1]
        raise UserError(f"{python} could not compile the network of diffusers: {reason}")
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def show(program: str, network: str, found: dict[str, float], ours: dict[str, float]) -> None:
    print(
        f"| {program} | {network} | {found['seconds'] * 1e3:.1f} | {found['flops'] / 1e12:.2f} | "
        f"{found['moved'] / 1e9:.1f} | {found['temporaries'] / 2**30:.2f} | {found['loops']} | "
        f"{ours['seconds'] / found['seconds']:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
