"""The programs of benchmarks/accelerator.py: those of sample.py and train.py, with random arrays."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from xpsr_jax import sharding
from xpsr_jax.config import Config, Mesh, Networks, load_config
from xpsr_jax.diffusion.making import make_sampler
from xpsr_jax.inference.plan import first_step, full_table
from xpsr_jax.models.attention import attention
from xpsr_jax.models.configs import AutoencoderConfig, ControlNetConfig, Kernel, TextEncoderConfig, UNetConfig
from xpsr_jax.models.layers import Compute
from xpsr_jax.pods import programs
from xpsr_jax.weights.networks import NETWORKS, abstract

RNG = np.random.default_rng(0)


class Sizes(NamedTuple):
    """The sizes of all programs.

    Attributes:
      config: networks, batch of training, and crops. The restored pictures have the size of the crops.
      matrix: side of the square matrices whose product shows the speed that the device can reach.
      attentions: (queries, keys, features of a head) of the networks' attention layers.
      heads: heads of these layers.
      steps: sampling steps that are timed.
    """

    config: Config
    matrix: int
    attentions: tuple[tuple[int, int, int], ...]
    heads: int
    steps: int


EVERYTHING = ("unet", "controlnet", "autoencoder", "text_encoder")
_XPSR = load_config("xpsr")
FULL = Sizes(
    config=dataclasses.replace(
        _XPSR,
        networks=Networks(from_scratch=EVERYTHING),
        batch_size=2,
        # A single device holds all of the state, so there may be no room for all activations.
        precision=dataclasses.replace(_XPSR.precision, remat=True),
    ),
    matrix=8192,
    attentions=((4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (4096, 77, 40)),
    heads=8,
    steps=10,
)
# One level, with attention in the mid block and Conditional Attention in the decoder.
_UNET = UNetConfig(
    block_out_channels=(8,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    cross_attention_dim=8,
    attention_head_dim=2,
    norm_num_groups=4,
)
REDUCED = Sizes(
    config=dataclasses.replace(
        FULL.config,
        networks=Networks(
            from_scratch=EVERYTHING,
            unet=_UNET,
            controlnet=ControlNetConfig.like_unet(_UNET, conditioning_embedding_out_channels=(4, 4, 8)),
            autoencoder=AutoencoderConfig(
                block_out_channels=(4, 4, 8),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                layers_per_block=1,
                norm_num_groups=4,
            ),
            text_encoder=TextEncoderConfig(
                hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
            ),
        ),
        data=dataclasses.replace(FULL.config.data, crop_size=64),
        batch_size=1,
    ),
    matrix=256,
    attentions=((576, 576, 8),),
    heads=2,
    steps=2,
)


class Prepared(NamedTuple):
    """A compiled program with its arrays.

    Attributes:
      run: runs it once and waits for the end.
      flops: products and sums of a run, as XLA counts them before compilation.
      memory: bytes of its arrays and of its temporaries.
      compile_seconds: seconds of compilation.
    """

    run: Callable[[], object]
    flops: float
    memory: float
    compile_seconds: float


def seconds_of(run: Callable[[], object], *, least: float = 1.0, runs: int = 20) -> float:
    """The median seconds of several runs, after one run that does not count."""
    run()
    found: list[float] = []
    while len(found) < 3 or (sum(found) < least and len(found) < runs):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return float(np.median(found))


def filled(shapes: Any) -> Any:
    """Random arrays of these shapes. Values are so small that networks stay finite. Integers are 0."""
    values = RNG.standard_normal(2**18 + 1, np.float32)

    def fill(shape: jax.ShapeDtypeStruct) -> Array:
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            return jnp.zeros(shape.shape, shape.dtype)
        scale = np.prod(shape.shape[:-1]) ** -0.5 if len(shape.shape) > 1 else 0.02
        return jnp.asarray(np.resize(values, shape.shape) * np.float32(scale), shape.dtype)

    return jax.tree.map(fill, shapes)


def compiled(lowered: jax.stages.Lowered, run: Callable[[jax.stages.Compiled], object], *, rounds: int = 1) -> Prepared:
    """Compiles a program.

    Args:
      lowered: the program.
      run: calls the compiled program with its arrays.
      rounds: rounds of the program's loop. XLA counts the body of a loop only once.
    """
    begin = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - begin
    memory, cost = program.memory_analysis(), lowered.cost_analysis() or {}
    assert memory is not None
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Prepared(
        lambda: jax.block_until_ready(run(program)), float(cost.get("flops", 0.0)) * rounds, float(needed), seconds
    )


def product(sizes: Sizes) -> Prepared:
    """A product of two square matrices, which shows the speed that the device can reach."""
    shape = jax.ShapeDtypeStruct((sizes.matrix, sizes.matrix), jnp.bfloat16)
    pair = filled((shape, shape))
    return compiled(jax.jit(jnp.matmul).lower(*pair), lambda program: program(*pair))


def attended(kernel: Kernel, sizes: tuple[int, int, int], heads: int, *, gradient: bool) -> tuple[Prepared, float]:
    """One attention layer for two samples, and its error: the largest difference from "plain" in float32, relative to
    the range of the values.
    """
    queries, keys, features = sizes
    q, k, v, weights = (
        jnp.asarray(RNG.standard_normal((2, length, heads, features)), jnp.bfloat16)
        for length in (queries, keys, keys, queries)
    )

    def values(q: Array, k: Array, v: Array, *, kernel: Kernel) -> Array:
        return attention(q, k, v, kernel=kernel)

    def gradients(q: Array, k: Array, v: Array, *, kernel: Kernel) -> tuple[Array, ...]:
        def total(*inputs: Array) -> Array:
            return jnp.sum(attention(*inputs, kernel=kernel).astype(jnp.float32) * weights)

        found: tuple[Array, ...] = jax.grad(total, argnums=(0, 1, 2))(q, k, v)
        return found

    call = gradients if gradient else values
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(functools.partial(call, kernel="plain"))(*(x.astype(jnp.float32) for x in (q, k, v)))
    lowered = jax.jit(functools.partial(call, kernel=kernel)).lower(q, k, v)
    program = compiled(lowered, lambda program: program(q, k, v))
    errors = [
        float(jnp.max(jnp.abs(ours.astype(jnp.float32) - theirs)) / jnp.max(jnp.abs(theirs)))
        for ours, theirs in zip(jax.tree.leaves(program.run()), jax.tree.leaves(exact), strict=True)
    ]
    return program, max(errors)


def guided_steps(sizes: Sizes) -> Prepared:
    """Guided steps of one picture, with both halves, as `inference.restore.Restorer` runs them."""
    config = dataclasses.replace(sizes.config, batch_size=1)
    program = programs.sampling_step(config, one_device())
    form, sampler, shapes, state, first, last = program.arguments
    schedule = config.networks.schedule
    table = full_table(make_sampler(config.sampling, schedule), config.sampling.steps, first_step(config.sampling))
    inputs = filled(shapes)._replace(table=jax.tree.map(jnp.asarray, table))
    with sharding.gathering_kernels(one_device()):
        lowered = program.function.lower(form, sampler, shapes, state, first, last)
    arrays = inputs, filled(state), jnp.asarray(0, jnp.int32), jnp.asarray(sizes.steps, jnp.int32)
    return compiled(lowered, lambda program: program(*arrays), rounds=sizes.steps)


def decoder(sizes: Sizes) -> Prepared:
    """Decodes one picture from its latents."""
    config, compute = sizes.config.networks.autoencoder, Compute(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    graph, weights = nnx.split(abstract(NETWORKS["autoencoder"], config, compute=compute))
    side = sizes.config.data.crop_size // 2 ** (len(config.block_out_channels) - 1)
    latents = jax.ShapeDtypeStruct((1, side, side, config.latent_channels), jnp.float32)
    decode = jax.jit(lambda weights, latents: nnx.merge(graph, weights).decode(latents))
    arrays = filled((weights, latents))
    return compiled(decode.lower(*arrays), lambda program: program(*arrays))


def training_step(sizes: Sizes) -> Prepared:
    """A training step as `training.loop.train` runs it. Each run continues from the state of the run before."""
    program = programs.train_step(sizes.config, one_device())
    held: list[Any] = []

    def run(step: jax.stages.Compiled) -> object:
        if not held:
            state, *others = program.arguments
            zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), state)
            held.extend([dataclasses.replace(zeros, trained=filled(state.trained)), *filled(others)])
        held[0], metrics = step(*held)
        return metrics

    return compiled(program.lower(), run)


def one_device() -> jax.sharding.Mesh:
    """A mesh of only the first device."""
    return sharding.make_mesh(Mesh(), jax.local_devices()[:1])
