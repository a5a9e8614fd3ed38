"""DPM-Solver++(2M) (Lu et al., 2022): a multistep method of second order in the estimates of the clean latents."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from xpsr_jax.diffusion.noise_levels import Levels, solver_levels
from xpsr_jax.diffusion.process import Latents, clean_estimate
from xpsr_jax.diffusion.samplers import Column, SamplerState, Table, make_table
from xpsr_jax.diffusion.schedule import Schedule


class SecondOrder(NamedTuple):
    """x' = latents · x + x0 · (this step's clean estimate) + previous · (the previous step's clean estimate)."""

    latents: Column
    x0: Column
    previous: Column

    def __call__(self, latents: Latents, x0: Latents, previous: Latents) -> Latents:
        """x', with the shape of the latents.

        Args:
            latents: x, the latents before the step.
            x0: the estimate of the clean latents at `latents`.
            previous: the estimate of the previous step.
        """
        after: Latents = self.latents * latents + self.x0 * x0 + self.previous * previous
        return after


@dataclasses.dataclass(frozen=True)
class DpmSolver:
    """DPM-Solver++(2M), "midpoint" (Lu et al., 2022, algorithm 2).

    The first executed step and the last step of the trajectory are of first order.

    Attributes:
        karras: use Karras' noise levels.
    """

    schedule: Schedule
    karras: bool = False

    def table(self, steps: int, first: int = 0) -> Table:
        """All `steps` rows, with `SecondOrder` weights. Row `first` is of first order; rows before it are unused.

        Raises UserError for a number of steps that the schedule does not allow (`noise_levels.solver_levels`).
        """
        levels = solver_levels(self.schedule, steps, karras=self.karras)
        return make_table(levels.timesteps, levels.signal[:-1], levels.sigma[:-1], second_order(levels, first))

    def init(self, latents: Latents) -> SamplerState:
        """The state before the first step. Its memory, a clean estimate, has the right shape but no meaning yet."""
        return SamplerState(latents, (latents,))  # The first step does not use the memory.

    def step(self, state: SamplerState, row: Table, prediction: Latents, noise: Latents) -> SamplerState:
        """One step of `second_order`.

        Args:
            state: the state before the step; its memory is the previous step's clean estimate.
            row: a row of `table`.
            prediction: the networks' guided prediction at `state.latents`, of the schedule's `prediction_type`.
            noise: not used.
        """
        (previous,) = state.memory
        x0 = clean_estimate(self.schedule, prediction, state.latents, row.signal, row.sigma)
        weights: SecondOrder = row.weights
        return SamplerState(weights(state.latents, x0, previous), (x0,))


def second_order(levels: Levels, first: int) -> SecondOrder:
    """Weights of the second-order steps. Row `first` and the last row are of first order.

    With l = log(signal / sigma), h = l' - l and r = (l - l_previous) / h:
    x' = sigma' / sigma x + signal' (1 - exp(-h)) (x0 + (x0 - x0_previous) / 2r).
    """
    gain, ratio = first_order(levels)
    slope = np.zeros_like(gain)
    inner = np.arange(max(first, 0) + 1, len(gain) - 1)
    slope[inner] = 1 / (2 * ratio[inner])
    return SecondOrder(levels.sigma[1:] / levels.sigma[:-1], gain * (1 + slope), -gain * slope)


def first_order(levels: Levels) -> tuple[Float[np.ndarray, "steps"], Float[np.ndarray, "steps"]]:
    """signal' (1 - exp(-h)) of each step, and r = (l - l_previous) / h (NaN for the first and the last step)."""
    signal, sigma = levels.signal, levels.sigma
    # exp(-h) = signal sigma' / (sigma signal'), which is 0 if sigma' is 0.
    gain = signal[1:] - sigma[1:] * signal[:-1] / sigma[:-1]
    log_ratio = np.log(signal[:-1] / sigma[:-1])
    h = np.diff(log_ratio)
    ratio = np.full(len(gain), np.nan)
    ratio[1:-1] = h[:-1] / h[1:]
    return gain, ratio
