"""What is done with a whole large picture's latents, between what is done tile by tile (docs/sampling.md)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8, UInt32

from xpsr_jax.diffusion.choices import Start
from xpsr_jax.diffusion.process import Latents
from xpsr_jax.diffusion.samplers import (
    Sampler,
    SamplerState,
    Table,
    advance,
    normal,
    start_latents,
    step_noise,
)
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.inference.image_keys import image_key
from xpsr_jax.models.controlnet import ImageFeatures


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A sampler whose step returns the networks' prediction: with it, what samples a picture predicts tiles."""

    schedule: Schedule

    def table(self, steps: int, first: int = 0) -> Table:
        raise NotImplementedError("the real sampler's table says what the networks are told")

    def init(self, latents: Latents) -> SamplerState:
        return SamplerState(latents)

    def step(self, state: SamplerState, row: Table, prediction: Latents, noise: Latents) -> SamplerState:
        return SamplerState(prediction)


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin(
    sampler: Sampler,
    start: Start,
    moments: tuple[Float[Array, "h w c"], Float[Array, "h w c"]],
    scaling: Float[Array, ""],
    digests: UInt32[Array, "1 2"],
    seed: UInt32[Array, "2"],
    levels: tuple[tuple[Float[Array, ""], Float[Array, ""]], tuple[Float[Array, ""], Float[Array, ""]]],
) -> tuple[SamplerState, Array]:
    """State before the first step, and the key of the steps' noise: as `restore.prepare`, for the moments of `encode`.

    Noise is drawn for the whole picture, so tiles have no influence on it.
    """
    posterior_key, *noise_keys, step_key = jax.random.split(image_key(seed, digests[0]), 4)
    mean, log_variance = moments
    lr_latents = scaling * (mean + jnp.exp(0.5 * log_variance) * normal(posterior_key[None], mean.shape))
    noises = (normal(key[None], mean.shape) for key in noise_keys)
    latents = start_latents(start, lr_latents, *noises, first_level=levels[0], second_level=levels[1])
    return sampler.init(latents), step_key[None]


@functools.partial(jax.jit, static_argnums=0)
def image_features(graph: Any, weights: Any, pixels: UInt8[Array, "b H W 3"]) -> ImageFeatures:
    """As in `restore.prepare`, of tiles of the LR image: each tile's network sees nothing beyond it (method §7)."""
    _, controlnet, *_ = nnx.merge(graph, weights)
    return controlnet.encode_image(pixels.astype(jnp.float32) / 255)._replace(rgb_predictions=())


@functools.partial(jax.jit, static_argnums=0)
def step(
    sampler: Sampler,
    state: SamplerState,
    table: Table,
    index: Int[Array, ""],
    prediction: Latents,
    step_keys: Array,
) -> SamplerState:
    """The sampler's step of that index, by the prediction that the tiles were blended to."""
    noise = step_noise(step_keys, prediction.shape[1:])
    return advance(sampler, lambda *_: prediction, state, table, noise, index, index + 1)
