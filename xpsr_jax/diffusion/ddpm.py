"""DDPM (Ho et al., 2020): the sampler of the paper and of its released code."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from xpsr_jax.diffusion.process import Latents, alphas_cumprod, clean_estimate, visited_timesteps
from xpsr_jax.diffusion.samplers import SamplerState, Table, Weights, make_table
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Ddpm:
    """Ancestral sampling (Ho et al., 2020, eq. 7) over some of the timesteps, with "fixed_small" variance.

    With a = ab_t and a' = ab_t' of the next timestep (1 after the last), alpha = a / a' and beta = 1 - alpha:
    x' = sqrt(a') beta / (1 - a) x0 + sqrt(alpha) (1 - a') / (1 - a) x + sqrt(max((1 - a') / (1 - a) beta, 1e-20)) n,
    without noise at t = 0.
    """

    schedule: Schedule

    def table(self, steps: int, first: int = 0) -> Table:
        """All `steps` rows, with `Weights`. They do not depend on `first`.

        Raises UserError for a number of steps that the schedule does not allow (`visited`).
        """
        timesteps, alpha = visited(self.schedule, steps)
        next_alpha = np.append(alpha[1:], 1.0)
        ratio = alpha / next_alpha
        beta = 1 - ratio
        variance = np.maximum((1 - next_alpha) / (1 - alpha) * beta, 1e-20)
        weights = Weights(
            x0=np.sqrt(next_alpha) * beta / (1 - alpha),
            latents=np.sqrt(ratio) * (1 - next_alpha) / (1 - alpha),
            noise=np.where(timesteps > 0, np.sqrt(variance), 0.0),
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
            noise: n, from N(0, 1).
        """
        x0 = clipped(self.schedule, clean_estimate(self.schedule, prediction, state.latents, row.signal, row.sigma))
        weights: Weights = row.weights
        return SamplerState(weights.x0 * x0 + weights.latents * state.latents + weights.noise * noise)


def visited(schedule: Schedule, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """DDPM's and DDIM's timesteps (int32) and ab at them (float64).

    Raises UserError if the first timestep is pure noise and the network predicts the noise. Its prediction would then
    contain no information about the image.
    """
    timesteps = visited_timesteps(schedule, steps)
    alpha = alphas_cumprod(schedule).astype(np.float64)[timesteps]
    if alpha[0] == 0 and schedule.prediction_type == "epsilon":
        raise UserError(
            "a schedule rescaled to zero terminal SNR begins with pure noise, where a network that predicts the noise "
            '("epsilon") gives no image: use the spacing "leading", or a model with "v_prediction"'
        )
    return timesteps, alpha


def clipped(schedule: Schedule, x0: Latents) -> Latents:
    """The estimate of the clean latents, clipped if `Schedule.clip_sample` is set."""
    if not schedule.clip_sample:
        return x0
    return jnp.clip(x0, -schedule.clip_sample_range, schedule.clip_sample_range)
