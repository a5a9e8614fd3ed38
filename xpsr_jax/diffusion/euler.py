"""Euler's method and its ancestral variant (Karras et al., 2022; k-diffusion), in the networks' scale of latents."""

import dataclasses

import numpy as np

from xpsr_jax.diffusion.noise_levels import euler_levels
from xpsr_jax.diffusion.process import Latents, clean_estimate
from xpsr_jax.diffusion.samplers import SamplerState, Table, Weights, make_table
from xpsr_jax.diffusion.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Euler:
    """Euler's method on the probability flow (Karras et al., 2022, eq. 4).

    diffusers stores y = x / signal = x_0 + s noise with s = sigma / signal, and scales it down for the network. Its
    step is y' = x0 + r (y - x0) with r = s' / s. Here that is x' = signal' (1 - r) x0 + r signal' / signal x. These are
    the same latents in another scale. With it, every sampler has the same start, and the network gets x directly.

    Attributes:
        ancestral: reduce the noise further, with r = (s' / s)², and add new noise of standard deviation s' sqrt(1 - r).
            The sampler is then as random as DDPM.
        karras: use Karras' noise levels.
    """

    schedule: Schedule
    ancestral: bool = False
    karras: bool = False

    def table(self, steps: int, first: int = 0) -> Table:
        """All `steps` rows, with `Weights`. They do not depend on `first`.

        Raises UserError for a number of steps that the schedule does not allow (`noise_levels.euler_levels`).
        """
        timesteps, signal, sigma = euler_levels(self.schedule, steps, karras=self.karras)
        level = sigma / signal
        ratio = level[1:] / level[:-1]
        if self.ancestral:
            ratio = ratio**2
        weights = Weights(
            x0=signal[1:] * (1 - ratio),
            latents=ratio * signal[1:] / signal[:-1],
            noise=sigma[1:] * np.sqrt(1 - ratio) if self.ancestral else np.zeros(steps),
        )
        return make_table(timesteps, signal[:-1], sigma[:-1], weights)

    def init(self, latents: Latents) -> SamplerState:
        """The state before the first step: the start latents, without memory."""
        return SamplerState(latents)

    def step(self, state: SamplerState, row: Table, prediction: Latents, noise: Latents) -> SamplerState:
        """One step of the equation above.

        Args:
            state: the state before the step.
            row: a row of `table`.
            prediction: the networks' guided prediction at `state.latents`, of the schedule's `prediction_type`.
            noise: from N(0, 1); used only by the ancestral variant.
        """
        x0 = clean_estimate(self.schedule, prediction, state.latents, row.signal, row.sigma)
        weights: Weights = row.weights
        latents = weights.x0 * x0 + weights.latents * state.latents
        return SamplerState(latents + weights.noise * noise if self.ancestral else latents)
