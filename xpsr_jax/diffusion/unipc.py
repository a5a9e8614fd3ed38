"""UniPC (Zhao et al., 2023): a multistep predictor and corrector with one evaluation per step."""

import dataclasses
from typing import NamedTuple

import numpy as np

from xpsr_jax.diffusion.dpm_solver import SecondOrder, first_order, second_order
from xpsr_jax.diffusion.noise_levels import Levels, solver_levels
from xpsr_jax.diffusion.process import Latents, clean_estimate
from xpsr_jax.diffusion.samplers import Column, SamplerState, Table, make_table
from xpsr_jax.diffusion.schedule import Schedule


class Corrector(NamedTuple):
    """x = kept · x + last · (latents before the previous step) + x0, previous, earlier · (this and older estimates)."""

    kept: Column
    last: Column
    x0: Column
    previous: Column
    earlier: Column


class UniPcWeights(NamedTuple):
    """Weights of one step: for the correction of the latents before it, then for the prediction of those after it."""

    corrector: Corrector
    predictor: SecondOrder


@dataclasses.dataclass(frozen=True)
class UniPc:
    """UniPC of order 2 with B(h) = exp(h) - 1 ("bh2"), in the clean estimate (Zhao et al., 2023, algorithms 1 and 2).

    Each step first corrects the latents predicted by the previous step, using the estimate of the clean latents there.
    It then predicts like DPM-Solver++(2M), which is the same predictor for this B(h).

    Attributes:
        karras: use Karras' noise levels.
    """

    schedule: Schedule
    karras: bool = False

    def table(self, steps: int, first: int = 0) -> Table:
        """All `steps` rows, with `UniPcWeights`.

        Row `first` corrects nothing and predicts at first order; rows before it are unused.

        Raises UserError for a number of steps that the schedule does not allow (`noise_levels.solver_levels`).
        """
        levels = solver_levels(self.schedule, steps, karras=self.karras)
        weights = UniPcWeights(_corrector(levels, first), second_order(levels, first))
        return make_table(levels.timesteps, levels.signal[:-1], levels.sigma[:-1], weights)

    def init(self, latents: Latents) -> SamplerState:
        """The state before the first step.

        Its memory has the right shapes but no meaning yet: the latents before the previous step, and the last two clean
        estimates, newer first.
        """
        return SamplerState(latents, (latents,) * 3)  # The first step does not use the memory.

    def step(self, state: SamplerState, row: Table, prediction: Latents, noise: Latents) -> SamplerState:
        """Corrects `state.latents`, then predicts the latents after the step.

        Args:
            state: the state before the step, with the memory that `init` describes.
            row: a row of `table`.
            prediction: the networks' guided prediction at `state.latents`, of the schedule's `prediction_type`.
            noise: not used.
        """
        last, previous, earlier = state.memory
        weights: UniPcWeights = row.weights
        corrector, predictor = weights
        x0 = clean_estimate(self.schedule, prediction, state.latents, row.signal, row.sigma)
        corrected = corrector.kept * state.latents + corrector.last * last
        corrected += corrector.x0 * x0 + corrector.previous * previous + corrector.earlier * earlier
        return SamplerState(predictor(corrected, x0, previous), (corrected, x0, previous))


def _corrector(levels: Levels, first: int) -> Corrector:
    """Weights that correct, in row i, the prediction of the previous step. Row `first` corrects nothing.

    With h, r and the order of the previous step, m = x0_{i-1} and D = -(x0_{i-2} - m) / r:
    x = sigma_i / sigma_{i-1} x_{i-1} + signal_i (1 - exp(-h)) (m + a D + b (x0_i - m)).
    Order 1: a = 0, b = 1/2. Order 2: a + b = p, b - r a = q, with p = (B / -h - 1) / B, q = 2 ((B / -h - 1) / -h - 1/2)
    / B and B = exp(-h) - 1.
    """
    steps = len(levels.timesteps)
    weights = Corrector(*np.zeros((5, steps)))
    gain, ratio = first_order(levels)
    log_ratio = np.log(levels.signal[:-1] / levels.sigma[:-1])
    weights.kept[: first + 1] = 1
    for i in range(first + 1, steps):
        a, b, r = 0.0, 0.5, ratio[i - 1]
        if i - 1 > first:
            z = log_ratio[i - 1] - log_ratio[i]  # -h
            growth = np.expm1(z)
            p = (growth / z - 1) / growth
            q = 2 * ((growth / z - 1) / z - 0.5) / growth
            a = (p - q) / (1 + r)
            b = p - a
        older = -a / r if a else 0.0
        weights.last[i] = levels.sigma[i] / levels.sigma[i - 1]
        weights.x0[i] = gain[i - 1] * b
        weights.previous[i] = gain[i - 1] * (1 - b - older)
        weights.earlier[i] = gain[i - 1] * older
    return weights
