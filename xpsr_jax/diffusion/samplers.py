"""Samplers: from noise to latents in a fixed number of steps (method §7).

A sampler is a frozen dataclass. Everything about its steps that can be known beforehand is a table of numpy arrays,
one row for each step; `step` is a pure function of a row; `sample` runs it under `lax.scan`. The number of steps is
therefore static, while scales, seeds and prompts are traced: changing them never compiles again.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from xpsr_jax.diffusion.schedule import Schedule

Start = Literal["lr", "noise", "lr_noised_twice"]
Denoise = Callable[[Float[Array, "b h w c"], Int[Array, ""]], Float[Array, "b h w c"]]
Noise = Callable[[Int[Array, ""]], Float[Array, "b h w c"]]


class SamplerState(NamedTuple):
    """What one step hands to the next: the latents, and what else the sampler remembers (earlier predictions, say)."""

    latents: Float[Array, "b h w c"]
    memory: Any = ()


class Sampler(Protocol):
    """What `sample` needs of a sampler. A table is a NamedTuple of arrays over steps, `index` and `timestep`."""

    def table(self) -> Any: ...
    def init(self, latents: Float[Array, "b h w c"]) -> SamplerState: ...
    def step(
        self, state: SamplerState, row: Any, prediction: Float[Array, "b h w c"], noise: Float[Array, "b h w c"]
    ) -> SamplerState: ...


class DdpmTable(NamedTuple):
    """DDPM's coefficients, each of shape (steps,): x' = x0_weight x0 + latents_weight x + noise_weight n."""

    index: Any
    timestep: Any
    x0_weight: Any
    latents_weight: Any
    noise_weight: Any


@dataclasses.dataclass(frozen=True)
class Ddpm:
    """Ancestral sampling (Ho et al., 2020, eq. 7) over some of the timesteps, with "fixed_small" variance.

    With a = ab_t and a' = ab_t' of the next timestep (1 after the last), alpha = a / a' and beta = 1 - alpha:
    x' = sqrt(a') beta / (1 - a) x0 + sqrt(alpha) (1 - a') / (1 - a) x + sqrt(max((1 - a') / (1 - a) beta, 1e-20)) n,
    without noise at t = 0.
    """

    schedule: Schedule
    steps: int

    def table(self) -> DdpmTable:
        timesteps = self.schedule.timesteps(self.steps)
        alpha = self.schedule.alphas_cumprod.astype(np.float64)[timesteps]
        next_alpha = np.append(alpha[1:], 1.0)
        ratio = alpha / next_alpha
        beta = 1 - ratio
        variance = np.maximum((1 - next_alpha) / (1 - alpha) * beta, 1e-20)
        return DdpmTable(
            index=np.arange(self.steps, dtype=np.int32),
            timestep=timesteps,
            x0_weight=(np.sqrt(next_alpha) * beta / (1 - alpha)).astype(np.float32),
            latents_weight=(np.sqrt(ratio) * (1 - next_alpha) / (1 - alpha)).astype(np.float32),
            noise_weight=np.where(timesteps > 0, np.sqrt(variance), 0).astype(np.float32),
        )

    def init(self, latents: Float[Array, "b h w c"]) -> SamplerState:
        return SamplerState(latents)

    def step(
        self, state: SamplerState, row: DdpmTable, prediction: Float[Array, "b h w c"], noise: Float[Array, "b h w c"]
    ) -> SamplerState:
        """One step, by a row of the table, the guided prediction at `state.latents`, and N(0, 1) noise."""
        x0 = self.schedule.to_x0(prediction, state.latents, row.timestep)
        if self.schedule.clip_sample:
            x0 = jnp.clip(x0, -self.schedule.clip_sample_range, self.schedule.clip_sample_range)
        return SamplerState(row.x0_weight * x0 + row.latents_weight * state.latents + row.noise_weight * noise)


def sample(
    sampler: Sampler, denoise: Denoise, latents: Float[Array, "b h w c"], noise: Noise
) -> Float[Array, "b h w c"]:
    """Runs all steps of a sampler from its start latents.

    Args:
        denoise: `denoise(latents, timestep) -> prediction`, guided, float32; `timestep` is an int32 scalar.
        latents: at the noise level of the first timestep, float32 (`start_latents`).
        noise: `noise(index) -> N(0, 1)` for the step of that index: `step_noise` of the images' keys, or a table of
            stored noise.
    """
    return advance(sampler, denoise, sampler.init(latents), sampler.table(), noise).latents


def advance(sampler: Sampler, denoise: Denoise, state: SamplerState, rows: Any, noise: Noise) -> SamplerState:
    """Runs the steps of `rows`, consecutive rows of the sampler's table, under `lax.scan`: all of them, or a part."""

    def one_step(state: SamplerState, row: Any) -> tuple[SamplerState, None]:
        prediction = denoise(state.latents, row.timestep)
        return sampler.step(state, row, prediction, noise(row.index)), None

    return jax.lax.scan(one_step, state, jax.tree.map(jnp.asarray, rows))[0]


def start_latents(
    schedule: Schedule,
    start: Start,
    lr_latents: Float[Array, "b h w c"],
    first_noise: Float[Array, "b h w c"],
    second_noise: Float[Array, "b h w c"],
    *,
    steps: int,
    added_noise_level: int = 800,
) -> Float[Array, "b h w c"]:
    """The latents that sampling starts from (method §7, §11).

    Args:
        start: "noise": `first_noise` alone; "lr": the LR image's latents noised to the first timestep (paper);
            "lr_noised_twice": these noised again to `added_noise_level` (released code), which leaves almost pure
            noise.
        lr_latents: the LR image's scaled latents.
    """
    if start == "noise":
        return first_noise
    latents = schedule.add_noise(lr_latents, first_noise, jnp.asarray(schedule.timesteps(steps)[0]))
    if start == "lr":
        return latents
    if start == "lr_noised_twice":
        return schedule.add_noise(latents, second_noise, jnp.asarray(added_noise_level))
    raise ValueError(f'start "{start}" is unknown: use "lr", "noise" or "lr_noised_twice"')


def step_noise(keys: Array, shape: tuple[int, ...]) -> Noise:
    """The noise of each step from one key per image: an image's noise does not depend on what is sampled beside it.

    Args:
        keys: (b,) random keys.
        shape: of one image's latents, (h, w, c).
    """
    return lambda index: normal(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index), shape)


def normal(keys: Array, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """N(0, 1) of shape (b, *shape), drawn image by image from `keys` (b,)."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
