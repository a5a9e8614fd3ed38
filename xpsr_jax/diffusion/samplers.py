"""What samplers have in common: from noise to latents in some steps (method §7, docs/reference/sampling.md).

A sampler is a frozen dataclass. Everything about its steps that can be known beforehand is a table of numpy arrays,
one row for each step; `step` is a pure function of a row; `sample` runs it in a compiled loop. Latents are always
x = signal x_0 + sigma noise with signal² + sigma² = 1, as the networks see them. Which rows are run, how many there
are and what they hold is traced, as are scales, seeds and prompts: changing them never compiles again.
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
# A number of every step, of numpy, (steps,); in a row of the table it is that step's, of JAX, ().
Column = Float[Any, "*steps"]


class SamplerState(NamedTuple):
    """What one step hands to the next: the latents, and what else the sampler remembers (earlier predictions, say)."""

    latents: Latents
    memory: tuple[Latents, ...] = ()


class Table(NamedTuple):
    """The steps of a sampler; each array has the shape (steps,). A row has the same fields, each of shape ().

    Attributes:
        timestep: what the networks are told, int32 or (between two timesteps) float32.
        signal, sigma: of the latents before the step.
        weights: the sampler's own coefficients: a tuple of columns, of a class of its own.
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
    """What `sample` needs of a sampler."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the model was trained with, by which predictions are understood."""
        ...

    def table(self, steps: int, first: int = 0) -> Table:
        """All `steps` rows; those before row `first` are of no use, if that is where sampling begins."""
        ...

    def init(self, latents: Latents) -> SamplerState:
        """The state before the first step."""
        ...

    def step(self, state: SamplerState, row: Table, prediction: Latents, noise: Latents) -> SamplerState:
        """One step, by a row of the table, the guided prediction at `state.latents`, and N(0, 1) noise."""
        ...


def make_table(
    timesteps: Int[np.ndarray, "steps"] | Float[np.ndarray, "steps"],
    signal: Float[np.ndarray, "steps"],
    sigma: Float[np.ndarray, "steps"],
    weights: Any,
) -> Table:
    """A table in the precision that the devices compute in: float64 becomes float32."""
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
        latents: at the noise level of the first step that is run, float32 (`start_latents`).
        noise: `noise(index) -> N(0, 1)` for the step of that index: `step_noise` of the images' keys, or a table of
            stored noise.
        steps: of the whole trajectory.
        first: index of the first step that is run.
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
    """Runs the steps `first` to `last` - 1 of a table. Both may be traced: then any part is run by one program."""
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
        start: "noise": `first_noise` alone; "lr": the LR image's latents noised to the first timestep (paper);
            "lr_noised_twice": these noised again (released code: as for timestep 800), which leaves almost pure noise.
        lr_latents: the LR image's scaled latents.
        first_level: signal and sigma of the first step that is run.
        second_level: signal and sigma of the second noising.
    """
    if start == "noise":
        return first_noise
    latents = first_level[0] * lr_latents + first_level[1] * first_noise
    if start == "lr":
        return latents
    if start == "lr_noised_twice":
        return second_level[0] * latents + second_level[1] * second_noise
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
