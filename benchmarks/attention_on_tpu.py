"""Prints the compiler's estimates for each attention kernel on a TPU chip. No TPU is needed.

    pip install "xpsr-jax" "jax[tpu]"
    python -m benchmarks.attention_on_tpu

The programs are the self-attention of Stable Diffusion's two finest levels at 512 x 512 pixels, in bfloat16, with two
samples per chip of v5e:2x2. They compute the values, or their gradients with respect to all three inputs. "splash" is
JAX's Pallas kernel of that name, with a mask that masks nothing.

XLA cannot see into Pallas kernels. For them, the estimate uses the least time for the products and bytes that the
kernel states. A kernel that states none counts as zero time.
"""

import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from benchmarks.on_tpu import TOPOLOGY, on_chips
from xpsr_jax import sharding
from xpsr_jax.models.attention import attention
from xpsr_jax.pods import chips, compiling, report

# Tokens, heads and features of a head at the two finest levels.
SIZES = ((4096, 8, 40), (1024, 8, 80))
LANES = 128
Attend = Callable[[Array, Array, Array], Array]


def splash(q: Array, k: Array, v: Array) -> Array:
    """softmax(q kᵀ / √d) v by JAX's splash attention. Heads are padded with zeros to the size that it needs."""
    n, heads, features = q.shape[1:]
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((n, n)) for _ in range(heads)])
    kernel = splash_attention_kernel.make_splash_mha_single_device(mask)
    room = ((0, 0), (0, 0), (0, 0), (0, -features % LANES))
    q, k, v = (jnp.pad(x, room).swapaxes(1, 2) for x in (q * features**-0.5, k, v))
    out: Array = jax.vmap(kernel)(q, k, v)
    return out.swapaxes(1, 2)[..., :features]


KERNELS: dict[str, Attend] = {
    "plain": functools.partial(attention, kernel="plain"),
    "two_pass": functools.partial(attention, kernel="two_pass"),
    "flash": functools.partial(attention, kernel="flash"),
    "splash": splash,
}


def gradients(attend: Attend) -> Callable[[Array, Array, Array], tuple[Array, ...]]:
    """Gradients of the sum of squares with respect to queries, keys and values, so that the whole result counts."""
    return jax.grad(lambda *inputs: (attend(*inputs).astype(jnp.float32) ** 2).sum(), argnums=(0, 1, 2))


def run(mesh: jax.sharding.Mesh) -> None:
    split = sharding.batch_sharding(mesh)
    print(
        "| kernel | tokens | heads of | program | estimate, ms | TFLOP | GB moved | temporaries, MiB | calls, silent |"
    )
    print("|---|---:|---:|---|---:|---:|---:|---:|---:|")
    for tokens, heads, features in SIZES:
        shape = jax.ShapeDtypeStruct((2 * mesh.size, tokens, heads, features), jnp.bfloat16, sharding=split)
        for name, attend in KERNELS.items():
            if name == "splash":
                parts = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
                attend = parts(attend, in_specs=(split.spec,) * 3, out_specs=split.spec)
            for what, program in (("values", attend), ("gradients", gradients(attend))):
                with sharding.gathering_kernels(mesh):
                    lowered = jax.jit(program).lower(shape, shape, shape)
                compiled, _ = compiling.compile_for_pod(lowered, "quick", what=f"compiling {name}")
                found = report.measure(compiled, chips.chip(TOPOLOGY))
                calls = report.custom_calls(compiled.as_text() or "")
                print(
                    f"| {name} | {tokens} | {features} | {what} | {found['seconds'] * 1e3:.2f} | "
                    f"{found['flops'] / 1e12:.3f} | {found['moved'] / 1e9:.2f} | "
                    f"{found['temporaries'] / 2**20:.0f} | {len(calls)}, {calls.count(None)} |",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(on_chips(run))
