"""The noise levels that DPM-Solver++, UniPC and Euler visit, with diffusers' spacing.

Everything is float64. A noise level is the ratio s = sigma / signal in x = signal x_0 + sigma noise, where
signal² + sigma² = 1.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from xpsr_jax.diffusion.process import alphas_cumprod, visited_timesteps
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.errors import UserError

_RHO = 7.0  # Karras et al., 2022, table 1


class Levels(NamedTuple):
    """A trajectory, with one entry before each step. `signal` and `sigma` have one more entry at the end: 1 and 0.

    Attributes:
        timesteps: int32, or float32 if they are not whole numbers.
    """

    timesteps: Int[np.ndarray, "steps"] | Float[np.ndarray, "steps"]
    signal: Float[np.ndarray, "steps+1"]
    sigma: Float[np.ndarray, "steps+1"]


def solver_levels(schedule: Schedule, steps: int, *, karras: bool) -> Levels:
    """The levels that DPM-Solver++ and UniPC visit. Their timesteps are whole numbers.

    With "leading" and "linspace" spacing they are computed for one more step, and the last one is dropped. So the step
    to the clean image starts well above the smallest noise. With `karras` the noise levels are Karras' over the whole
    schedule, and timesteps are rounded to the nearest, so two of them may be equal.
    """
    if not 1 <= steps < schedule.num_train_timesteps:
        most = schedule.num_train_timesteps - 1
        raise UserError(f"the number of steps must be between 1 and {most}, not {steps}")
    known = _known_levels(schedule)
    if karras:
        ratios = karras_levels(known[-1], known[0], steps)
        timesteps = np.round(_timesteps_of(ratios, known))
    else:
        trailing = schedule.timestep_spacing == "trailing"
        timesteps = visited_timesteps(schedule, steps) if trailing else visited_timesteps(schedule, steps + 1)[:-1]
        ratios = known[timesteps]
    return _levels(timesteps.astype(np.int32), ratios)


def euler_levels(schedule: Schedule, steps: int, *, karras: bool) -> Levels:
    """The levels that Euler's samplers visit.

    With "linspace" spacing timesteps are not rounded, and noise levels are interpolated between whole timesteps. With
    `karras` the levels are Karras' between the first and the last of these, and the timesteps are interpolated.
    """
    known = _known_levels(schedule)
    timesteps = visited_timesteps(schedule, steps)
    if schedule.timestep_spacing == "linspace":
        timesteps = np.linspace(0, len(known) - 1, steps, dtype=np.float32)[::-1]
    ratios = np.interp(timesteps, np.arange(len(known)), known)
    if karras:
        ratios = karras_levels(ratios[0], ratios[-1], steps)
        timesteps = _timesteps_of(ratios, known)
    return _levels(timesteps.astype(np.float32), ratios)


def karras_levels(most: float, least: float, steps: int) -> Float[np.ndarray, "steps"]:
    """Noise levels whose seventh roots are evenly spaced (Karras et al., 2022, eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    levels: np.ndarray = (most ** (1 / _RHO) + ramp * (least ** (1 / _RHO) - most ** (1 / _RHO))) ** _RHO
    return levels


def _known_levels(schedule: Schedule) -> Float[np.ndarray, "t"]:
    """s of each timestep. A last timestep without signal gets the smallest signal in float16, as in diffusers."""
    alpha = np.maximum(alphas_cumprod(schedule).astype(np.float64), 2.0**-24)
    return np.sqrt((1 - alpha) / alpha)


def _timesteps_of(ratios: np.ndarray, known: np.ndarray) -> np.ndarray:
    timesteps: np.ndarray = np.interp(np.log(ratios), np.log(known), np.arange(len(known)))
    return timesteps


def _levels(timesteps: np.ndarray, ratios: np.ndarray) -> Levels:
    signal = np.append(1 / np.sqrt(ratios**2 + 1), 1.0)
    return Levels(timesteps, signal, np.append(ratios * signal[:-1], 0.0))
