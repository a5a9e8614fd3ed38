"""Consistency sampling in few steps (Song et al., 2023; Luo et al., 2023), for models that were trained for it."""

import dataclasses

import numpy as np

from xpsr_jax.diffusion.ddpm import clipped, visited
from xpsr_jax.diffusion.process import Latents, clean_estimate
from xpsr_jax.diffusion.samplers import SamplerState, Table, Weights, make_table
from xpsr_jax.diffusion.schedule import Schedule

# Constants of the boundary condition (Song et al., 2023, eq. 5), as in latent consistency models.
_SIGMA_DATA, _TIMESTEP_SCALING = 0.5, 10.0


@dataclasses.dataclass(frozen=True)
class Consistency:
    """Multistep consistency sampling (Song et al., 2023, algorithm 1), as in latent consistency models.

    Each step estimates the clean latents x0 and adds new noise for the next timestep, a' = ab_t' (1 after the last):
    x' = sqrt(a') (c_out x0 + c_skip x) + sqrt(1 - a') n. With d = 0.5 and s = 10 t, c_skip = d² / (s² + d²) and
    c_out = s / sqrt(s² + d²): all but the last few timesteps have c_skip near 0 and c_out near 1.
    """

    schedule: Schedule

    def table(self, steps: int, first: int = 0) -> Table:
        """All `steps` rows, with `Weights`. They do not depend on `first`.

        Raises UserError for a number of steps that the schedule does not allow (`ddpm.visited`).
        """
        timesteps, alpha = visited(self.schedule, steps)
        next_alpha = np.append(alpha[1:], 1.0)
        scaled = _TIMESTEP_SCALING * timesteps.astype(np.float64)
        skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        out = scaled / np.sqrt(scaled**2 + _SIGMA_DATA**2)
        root = np.sqrt(next_alpha)
        weights = Weights(x0=root * out, latents=root * skip, noise=np.sqrt(1 - next_alpha))
        return make_table(timesteps, np.sqrt(alpha), np.sqrt(1 - alpha), weights)

    def init(self, latents: Latents) -> SamplerState:
        """The state before the first step: the start latents, without memory."""
        return SamplerState(latents)

    def step(self, state: SamplerState, row: Table, prediction: Latents, noise: Latents) -> SamplerState:
        """One step of the equation above.

        Args:
            state: the state before the step.
            row: a row of `table`.
            prediction: the networks' prediction at `state.latents`, of the schedule's `prediction_type`.
            noise: n, from N(0, 1).
        """
        x0 = clipped(self.schedule, clean_estimate(self.schedule, prediction, state.latents, row.signal, row.sigma))
        weights: Weights = row.weights
        return SamplerState(weights.x0 * x0 + weights.latents * state.latents + weights.noise * noise)
