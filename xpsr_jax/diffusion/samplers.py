"""The common part of all samplers, which turn noise into latents step by step (method §7, docs/reference/sampling.md).

A sampler is a frozen dataclass. All numbers of its steps that are known in advance are in a table of numpy arrays with
one row per step. `step` is a pure function of a row, and `sample` runs it in a compiled loop. Latents are always
x = signal x_0 + sigma noise with signal² + sigma² = 1, as the networks see them. The number of rows, their values and
the range of executed rows are traced, like scales, seeds and prompts. So changing them does not recompile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from xpsr_jax.diffusion.choices import Start
from xpsr_jax.diffusion.process import Latents, Level
from xpsr_jax.diffusion.schedule import Schedule

Timestep = Int[Array, ""] | Float[Array, ""]
Denoise = Callable[[Latents, Timestep], Latents]
Noise = Callable[[Int[Array, ""]], Latents]
# One number per step: a numpy array (steps,) in the table, a JAX scalar () in a row.
Column = Float[Any, "*steps"]


class SamplerState(NamedTuple):
    """The state between two steps: the latents and the sampler's memory (for example earlier predictions)."""

    latents: Latents
    memory: tuple[Latents, ...] = ()


class Table(NamedTuple):
    """The steps of a sampler. Each array has the shape (steps,). A row has the same fields, each with shape ().

    Attributes:
        timestep: the networks' timestep: int32, or float32 if it is not a whole number.
        signal, sigma: signal and noise of the latents before the step.
        weights: the sampler's coefficients: a tuple of columns, with a class for each sampler.
    """

    timestep: Shaped[Any, "*steps"]
    signal: Column
    sigma: Column
    weights: Any


class Weights(NamedTuple):
    """Coefficients of a step without memory: x' = x0 · (clean estimate) + latents · x + noise · n, n from N(0, 1)."""

    x0: Column
    latents: Column
    noise: Column


@runtime_checkable
class Sampler(Protocol):
    """The interface of a sampler for `sample`."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the model was trained with. It determines what predictions mean."""
        ...

    def table(self, steps: int, first: int = 0) -> Table:
        """All `steps` rows, for sampling that begins at row `first`. Rows before it are unused."""
        ...

    def init(self, latents: Latents) -> SamplerState:
        """The state before the first step."""
        ...

    def step(self, state: SamplerState, row: Table, prediction: Latents, noise: Latents) -> SamplerState:
        """One step, from a row of the table, the guided prediction at `state.latents`, and N(0, 1) noise."""
        ...


def make_table(
    timesteps: Int[np.ndarray, "steps"] | Float[np.ndarray, "steps"],
    signal: Float[np.ndarray, "steps"],
    sigma: Float[np.ndarray, "steps"],
    weights: Any,
) -> Table:
    """A table in the devices' precision: float64 becomes float32."""
    table = Table(timesteps, signal, sigma, weights)
    single: Table = jax.tree.map(
        lambda column: column.astype(np.float32) if column.dtype == np.float64 else column, table
    )
    return single


def sample(
    sampler: Sampler, denoise: Denoise, latents: Latents, noise: Noise, *, steps: int, first: int = 0
) -> Latents:
    """Runs a sampler from its start latents to the end.

    Args:
        denoise: `denoise(latents, timestep) -> prediction`, guided, float32; `timestep` is a scalar.
        latents: the start, at the noise level of the first executed step, float32 (`start_latents`).
        noise: `noise(index) -> N(0, 1)` for the step with this index: `step_noise` with the images' keys, or stored
            noise.
        steps: number of steps of the whole trajectory.
        first: index of the first executed step.
    """
    table = sampler.table(steps, first)
    return advance(sampler, denoise, sampler.init(latents), table, noise, first, steps).latents


def advance(
    sampler: Sampler,
    denoise: Denoise,
    state: SamplerState,
    table: Table,
    noise: Noise,
    first: int | Int[Array, ""],
    last: int | Int[Array, ""],
) -> SamplerState:
    """Runs the steps `first` to `last` - 1 of a table. Both may be traced, so that one program can run any part."""
    table = jax.tree.map(jnp.asarray, table)

    def one_step(index: Int[Array, ""], state: SamplerState) -> SamplerState:
        row = jax.tree.map(lambda column: column[index], table)
        return sampler.step(state, row, denoise(state.latents, row.timestep), noise(index))

    final: SamplerState = jax.lax.fori_loop(first, last, one_step, state)
    return final


def start_latents(
    start: Start,
    lr_latents: Latents,
    first_noise: Latents,
    second_noise: Latents,
    *,
    first_level: tuple[Level, Level],
    second_level: tuple[Level, Level],
) -> Latents:
    """The latents that sampling starts from (method §7, §11).

    Args:
        start: "noise": only `first_noise`. "lr": the LR image's latents with the noise of the first timestep (paper).
            "lr_without_noise": the same without the noise (one-step networks: Wu et al., 2024, OSEDiff).
            "lr_noised_twice": the same with noise added again (released code: that of timestep 800), which leaves
            almost pure noise.
        lr_latents: the LR image's scaled latents.
        first_level: signal and sigma of the first executed step.
        second_level: signal and sigma of the second noise.
    """
    if start == "noise":
        return first_noise
    if start == "lr_without_noise":
        return first_level[0] * lr_latents
    latents = first_level[0] * lr_latents + first_level[1] * first_noise
    if start == "lr":
        return latents
    if start == "lr_noised_twice":
        return second_level[0] * latents + second_level[1] * second_noise
    raise ValueError(f'start "{start}" is unknown: use "lr", "lr_without_noise", "noise" or "lr_noised_twice"')


def step_noise(keys: Array, shape: tuple[int, ...]) -> Noise:
    """The noise of each step, from one key per image. An image's noise does not depend on the rest of the batch.

    Args:
        keys: (b,) random keys.
        shape: shape of one image's latents, (h, w, c).
    """
    return lambda index: normal(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index), shape)


def normal(keys: Array, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """N(0, 1) noise with shape (b, *shape), drawn separately for each image from `keys` (b,)."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
