"""The diffusion process of a schedule: noise levels, adding noise, estimates from predictions (method §6, §7)."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.errors import UserError

Latents = Float[Array, "b h w c"]
Timesteps = Int[Array, "b"] | Int[Array, ""]
# sqrt(ab) or sqrt(1 - ab), for each image or for all images.
Level = Float[Array, "b 1 1 1"] | Float[Array, ""] | float


@functools.lru_cache(maxsize=32)
def alphas_cumprod(schedule: Schedule) -> Float[np.ndarray, "t"]:
    """ab_t in float32, bitwise equal to PyTorch's.

    PyTorch computes evenly spaced betas with one fused multiply-add from the nearer end, and accumulates the product in
    float64.
    """
    root = np.sqrt if schedule.beta_schedule == "scaled_linear" else np.asarray
    start, end = np.float32(root(schedule.beta_start)), np.float32(root(schedule.beta_end))
    count = schedule.num_train_timesteps
    step = np.float64((end - start) / np.float32(max(count - 1, 1)))
    index = np.arange(count)
    spaced = np.where(index < count // 2, start + step * index, end - step * (count - 1 - index)).astype(np.float32)
    betas = spaced * spaced if schedule.beta_schedule == "scaled_linear" else spaced
    if schedule.rescale_betas_zero_snr:
        betas = _rescaled(betas)
    return _cumulative(betas)


def visited_timesteps(schedule: Schedule, steps: int) -> Int[np.ndarray, "steps"]:
    """The timesteps that DDPM and DDIM visit in `steps` steps, descending (int32).

    "leading": k floor(T / steps) + offset. "trailing": from T - 1 downwards in steps of T / steps. "linspace": evenly
    from T - 1 to 0. For the other samplers see `noise_levels.py`.
    """
    count = schedule.num_train_timesteps
    if not 1 <= steps <= count:
        raise UserError(f"the number of steps must be between 1 and {count}, not {steps}")
    timesteps: np.ndarray
    if schedule.timestep_spacing == "leading":
        timesteps = np.arange(steps)[::-1] * (count // steps) + schedule.steps_offset
    elif schedule.timestep_spacing == "trailing":
        timesteps = np.round(np.arange(count, 0, -count / steps)[:steps]) - 1
    else:
        timesteps = np.round(np.linspace(0, count - 1, steps))[::-1]
    if timesteps.max() >= count:
        raise UserError(
            f"{steps} steps would begin at timestep {timesteps.max():.0f} of {count} (steps_offset): use fewer"
        )
    return timesteps.astype(np.int32)


def evaluations_of(steps: int, strength: float) -> int:
    """How many of the steps are run at a strength: the last ones. At least one. Of 10 steps at strength 0.35: 3."""
    return max(int(steps * strength), 1)


def steps_for(evaluations: int, strength: float) -> int:
    """The number of steps of which a strength runs so many. For 1 evaluation at strength 0.02: 50 steps."""
    steps = math.ceil(evaluations / strength)
    # 1 / 0.02 is exactly 50, but other quotients are rounded to a number that is a little too small or too large.
    return next(each for each in (steps - 1, steps, steps + 1) if int(each * strength) == evaluations)


def add_noise(schedule: Schedule, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
    """x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise."""
    signal, sigma = levels_at(schedule, timesteps)
    return signal * latents + sigma * noise


def velocity(schedule: Schedule, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
    """v_t = sqrt(ab_t) noise - sqrt(1 - ab_t) x_0 (Salimans and Ho, 2022)."""
    signal, sigma = levels_at(schedule, timesteps)
    return signal * noise - sigma * latents


def prediction_target(schedule: Schedule, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
    """The network's target according to `prediction_type`: the noise, the velocity or the clean latents."""
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "v_prediction":
        return velocity(schedule, latents, noise, timesteps)
    return latents


def clean_estimate(schedule: Schedule, prediction: Latents, latents: Latents, signal: Level, sigma: Level) -> Latents:
    """The estimate of the clean latents from a prediction at `latents` = signal x_0 + sigma noise."""
    if schedule.prediction_type == "epsilon":
        return (latents - sigma * prediction) / signal
    if schedule.prediction_type == "v_prediction":
        return signal * latents - sigma * prediction
    return prediction


def noise_estimate(schedule: Schedule, prediction: Latents, latents: Latents, signal: Level, sigma: Level) -> Latents:
    """The estimate of the noise from a prediction at `latents` = signal x_0 + sigma noise."""
    if schedule.prediction_type == "epsilon":
        return prediction
    if schedule.prediction_type == "v_prediction":
        return signal * prediction + sigma * latents
    return (latents - signal * prediction) / sigma


def levels_at(schedule: Schedule, timesteps: Timesteps) -> tuple[Level, Level]:
    """sqrt(ab_t) and sqrt(1 - ab_t), shaped to multiply images: (b, 1, 1, 1), or () for one timestep."""
    alpha = jnp.asarray(alphas_cumprod(schedule))[jnp.asarray(timesteps)]
    alpha = alpha.reshape(*alpha.shape, 1, 1, 1) if alpha.ndim else alpha
    return jnp.sqrt(alpha), jnp.sqrt(1 - alpha)


def _cumulative(betas: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    return np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32)


def _rescaled(betas: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """Rescaled betas: sqrt(ab) is shifted to end at 0 and scaled to keep its first value."""
    root = np.sqrt(_cumulative(betas))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alphas = root**2
    return np.float32(1) - np.append(alphas[:1], alphas[1:] / alphas[:-1])
