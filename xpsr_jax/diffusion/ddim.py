"""DDIM (Song et al., 2021), from deterministic sampling to sampling as random as DDPM's."""

import dataclasses
from typing import NamedTuple

import numpy as np

from xpsr_jax.diffusion.ddpm import clipped, visited
from xpsr_jax.diffusion.process import Latents, alphas_cumprod, clean_estimate, noise_estimate
from xpsr_jax.diffusion.samplers import Column, SamplerState, Table, make_table
from xpsr_jax.diffusion.schedule import Schedule


class DdimWeights(NamedTuple):
    """x' = x0 · (clean estimate) + direction · (predicted noise) + noise · n."""

    x0: Column
    direction: Column
    noise: Column


@dataclasses.dataclass(frozen=True)
class Ddim:
    """DDIM (Song et al., 2021, eq. 12 and 16). With a = ab_t and a' = ab_t' at the step's target timestep t':

    x' = sqrt(a') x0 + sqrt(1 - a' - s²) eps + s n, s² = eta² (1 - a') / (1 - a) (1 - a / a').

    As in diffusers, t' is always t - floor(T / steps), and not the next visited timestep. With "linspace" spacing, and
    slightly with "trailing", the networks then get a timestep that does not match the latents' noise level. For t'
    below 0, a' is 1 or ab_0 (`Schedule.set_alpha_to_one`).

    Attributes:
        eta: 0 is deterministic, 1 as random as DDPM.
    """

    schedule: Schedule
    eta: float = 0.0

    def table(self, steps: int, first: int = 0) -> Table:
        """All `steps` rows, with `DdimWeights`. They do not depend on `first`.

        Raises UserError for a number of steps that the schedule does not allow (`ddpm.visited`).
        """
        timesteps, alpha = visited(self.schedule, steps)
        alphas = alphas_cumprod(self.schedule).astype(np.float64)
        following = timesteps - self.schedule.num_train_timesteps // steps
        end = 1.0 if self.schedule.set_alpha_to_one else alphas[0]
        next_alpha = np.where(following >= 0, alphas[np.maximum(following, 0)], end)
        variance = self.eta**2 * (1 - next_alpha) / (1 - alpha) * (1 - alpha / next_alpha)
        weights = DdimWeights(
            x0=np.sqrt(next_alpha),
            direction=np.sqrt(np.maximum(1 - next_alpha - variance, 0)),
            noise=np.sqrt(variance),
        )
        return make_table(timesteps, np.sqrt(alpha), np.sqrt(1 - alpha), weights)

    def init(self, latents: Latents) -> SamplerState:
        """The state before the first step: the start latents, without memory."""
        return SamplerState(latents)

    def step(self, state: SamplerState, row: Table, prediction: Latents, noise: Latents) -> SamplerState:
        """One step of the equation above.

        Args:
            state: the state before the step.
            row: a row of `table`.
            prediction: the networks' guided prediction at `state.latents`, of the schedule's `prediction_type`.
            noise: n, from N(0, 1); not used if `eta` is 0.
        """
        inputs = prediction, state.latents, row.signal, row.sigma
        x0 = clipped(self.schedule, clean_estimate(self.schedule, *inputs))
        direction = noise_estimate(self.schedule, *inputs)
        weights: DdimWeights = row.weights
        latents = weights.x0 * x0 + weights.direction * direction
        return SamplerState(latents + weights.noise * noise if self.eta > 0 else latents)
