"""Prints the compiler's estimates for the programs of benchmarks/step.py on a TPU chip. No TPU is needed.

    pip install "xpsr-jax" "jax[tpu]"
    python -m benchmarks.step_on_tpu

In bfloat16, with 64 x 64 latents, one image (or two samples of the stock UNet) per chip of v5e:2x2, and all weights on
each chip:

(b) Stable Diffusion 1.5's UNet;
(c) a guided step of XPSR that stores all attention scores, and whose halves share nothing;
(c') like (c), but with the attention for TPUs;
(d) a guided step as sample.py computes it, with the attention for TPUs;
(d, flash) like (d), with JAX's Pallas kernel. For the kernel, the estimate uses the least time for the products and
    bytes that it states;
(e) like (d), without guidance;
(f1) to (f3) guided steps that compute only the decoder's last 1 to 3 layers, from the cached features of a whole step;
(e1) to (e3) such steps without guidance.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.on_tpu import TOPOLOGY, on_chips
from benchmarks.step import Networks, alone, from_kept, keeping, project, shared, whole
from xpsr_jax import sharding
from xpsr_jax.models.attention import TPU_KERNEL
from xpsr_jax.models.configs import ControlNetConfig, Kernel, UNetConfig
from xpsr_jax.models.controlnet import ControlNet, ImageFeatures
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.unet import UNet
from xpsr_jax.pods import chips, compiling, report


def run(mesh: jax.sharding.Mesh) -> None:
    print("| program | XLA's estimate, ms | TFLOP | GB moved | temporaries, GiB | custom kernels |")
    print("|---|---:|---:|---:|---:|---:|")
    programs: dict[str, tuple[Callable[[Compute, jax.sharding.Mesh], jax.stages.Lowered], Kernel]] = {
        "b": (stock, TPU_KERNEL),
        "c": (plain_step, "plain"),
        "c'": (plain_step, TPU_KERNEL),
        "d": (fast_step, TPU_KERNEL),
        "d, flash": (fast_step, "flash"),
        "e": (unguided_step, TPU_KERNEL),
        **{
            f"{letter}{layers}": (functools.partial(outer_step, layers=layers, guided=letter == "f"), TPU_KERNEL)
            for letter in "fe"
            for layers in (1, 2, 3)
        },
    }
    for name, (program, kernel) in programs.items():
        compute = Compute(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, attention=kernel)
        with sharding.gathering_kernels(mesh):
            lowered = program(compute, mesh)
        compiled, _ = compiling.compile_for_pod(lowered, "quick", what=f"compiling {name}")
        found = report.measure(compiled, chips.chip(TOPOLOGY))
        print(
            f"| {name} | {found['seconds'] * 1e3:.1f} | {found['flops'] / 1e12:.2f} | {found['moved'] / 1e9:.1f} | "
            f"{found['temporaries'] / 2**30:.2f} | {found['custom_calls']} |",
            flush=True,
        )


def stock(compute: Compute, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    config = UNetConfig(conditional_attention=False)
    unet = nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0), compute=compute))
    latents, text = shape(mesh, 2, 64, 64, 4), shape(mesh, 2, 77, 768)
    projected = nnx.eval_shape(lambda unet, text: unet.project_text(text), unet, text)
    return lower(lambda unet, *inputs: unet(*inputs), unet, mesh, latents, steps(mesh, 2), projected)


def plain_step(compute: Compute, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    networks, latents, high, low, features = xpsr(compute, mesh)
    return lower(whole, networks, mesh, latents, steps(mesh, 1), high, low, features)


def fast_step(compute: Compute, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    networks, latents, high, low, features = xpsr(compute, mesh)
    texts = nnx.eval_shape(project, *networks, high, low)
    return lower(shared, networks, mesh, latents, steps(mesh, 1), *texts, features)


def unguided_step(compute: Compute, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    networks, latents, high, low, features = xpsr(compute, mesh, halves=1)
    texts = nnx.eval_shape(project, *networks, high, low)
    return lower(alone, networks, mesh, latents, steps(mesh, 1), *texts, features)


def outer_step(compute: Compute, mesh: jax.sharding.Mesh, *, layers: int, guided: bool) -> jax.stages.Lowered:
    networks, latents, high, low, features = xpsr(compute, mesh, halves=1 + guided)
    text, texts = nnx.eval_shape(project, *networks, high, low)
    keep = functools.partial(keeping, layers=layers)
    _, kept = nnx.eval_shape(keep, networks, latents, steps(mesh, 1), text, texts, features)
    return lower(functools.partial(from_kept, layers=layers), networks[0], mesh, latents, steps(mesh, 1), text, kept)


def xpsr(
    compute: Compute, mesh: jax.sharding.Mesh, *, halves: int = 2
) -> tuple[Networks, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, ImageFeatures]:
    """Networks without weights, and the shapes of latents, both texts and the image's features."""
    unet = nnx.eval_shape(lambda: UNet(UNetConfig(), rngs=nnx.Rngs(0), compute=compute))
    controlnet = nnx.eval_shape(lambda: ControlNet(ControlNetConfig(), rngs=nnx.Rngs(0), compute=compute))
    image = shape(mesh, 1, 512, 512, 3)
    features = nnx.eval_shape(lambda controlnet, image: controlnet.encode_image(image), controlnet, image)
    inputs = shape(mesh, 1, 64, 64, 4), shape(mesh, halves, 77, 768), shape(mesh, 1, 77, 768)
    return (unet, controlnet), *inputs, features._replace(rgb_predictions=())


def shape(mesh: jax.sharding.Mesh, samples: int, *rest: int) -> jax.ShapeDtypeStruct:
    """The shape of a batch with that many samples per chip."""
    return jax.ShapeDtypeStruct((samples * mesh.size, *rest), jnp.bfloat16)


def steps(mesh: jax.sharding.Mesh, samples: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((samples * mesh.size,), jnp.int32)


def lower(
    call: Callable[..., jax.Array], networks: nnx.Module | Networks, mesh: jax.sharding.Mesh, *inputs: object
) -> jax.stages.Lowered:
    graph, state = nnx.split(networks)
    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)

    def placed(tree: Any, where: jax.sharding.NamedSharding) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree)

    program = jax.jit(lambda state, *inputs: call(nnx.merge(graph, state), *inputs))
    return program.lower(placed(state, everywhere), *placed(inputs, split))


if __name__ == "__main__":
    sys.exit(on_chips(run))
