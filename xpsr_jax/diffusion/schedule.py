"""How much noise each timestep carries (method §6, §7), read from diffusers' `scheduler_config.json`."""

import dataclasses
import functools
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from xpsr_jax.errors import UserError

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing", "linspace"]

Latents = Float[Array, "b h w c"]
Timesteps = Int[Array, "b"] | Int[Array, ""]
# sqrt(ab) or sqrt(1 - ab) of each image, or of all.
Level = Float[Array, "b 1 1 1"] | Float[Array, ""] | float

_BETA_SCHEDULES = ("scaled_linear", "linear")
_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_SPACINGS = ("leading", "trailing", "linspace")

# What diffusers' classes take for a missing `timestep_spacing`. Any other class must state it.
_CLASSES: dict[str, Spacing] = {
    "DDPMScheduler": "leading",
    "DDIMScheduler": "leading",
    "PNDMScheduler": "leading",
    "DPMSolverMultistepScheduler": "linspace",
    "UniPCMultistepScheduler": "linspace",
    "EulerDiscreteScheduler": "linspace",
    "EulerAncestralDiscreteScheduler": "linspace",
}

# Fields that would change the process in a way we do not compute, with the values under which they change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "thresholding": (False, None),
    "variance_type": ("fixed_small", None),
    "use_flow_sigmas": (False, None),
    "timestep_type": ("discrete", None),
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The noise schedule of a diffusion model. Fields are named as in diffusers; the defaults are Stable Diffusion's.

    `x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise`, where `ab` is `alphas_cumprod`.

    Attributes:
        num_train_timesteps: T; timesteps are 0 .. T-1.
        beta_start, beta_end: variances added at the first and at the last timestep.
        beta_schedule: "scaled_linear" (square roots evenly spaced) or "linear".
        prediction_type: what the network predicts: the noise ("epsilon"), the velocity ("v_prediction") or the clean
            latents ("sample").
        rescale_betas_zero_snr: the betas are rescaled so that the last timestep is pure noise, ab = 0 (Lin et al.,
            2023, algorithm 1).
        timestep_spacing: which timesteps a sampler visits, see `timesteps`.
        steps_offset: added to the timesteps under "leading" spacing.
        set_alpha_to_one: whether DDIM-like samplers end on ab = 1 rather than on ab_0. DDPM always ends on 1.
        clip_sample: whether a sampler clips its estimate of the clean latents to ± `clip_sample_range`. Off in latent
            diffusion.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Spacing = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        for field, known in (
            ("beta_schedule", _BETA_SCHEDULES),
            ("prediction_type", _PREDICTION_TYPES),
            ("timestep_spacing", _SPACINGS),
        ):
            value = getattr(self, field)
            if value not in known:
                raise UserError(f'schedule: {field} "{value}" is not supported; it may be {", ".join(known)}')
        if self.num_train_timesteps < 1:
            raise UserError(f"schedule: num_train_timesteps must be at least 1, not {self.num_train_timesteps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(f"schedule: need 0 < beta_start <= beta_end < 1, not {self.beta_start} and {self.beta_end}")

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> "Schedule":
        """Reads a `scheduler_config.json`. Only the noising matters, which is the same for every class.

        What it says of a sampler (its order, Karras' noise levels) is passed over: settings choose the sampler. A
        missing field has the value that diffusers gives it. Values that describe another process than ours raise
        `UserError`.
        """
        name = config.get("_class_name", "DDPMScheduler")
        if name not in _CLASSES and "timestep_spacing" not in config:
            raise UserError(
                f"schedule: {name} without timestep_spacing is ambiguous; add that field to scheduler_config.json"
            )
        for field, harmless in _UNSUPPORTED.items():
            if config.get(field) not in (*harmless, None):
                raise UserError(f"schedule: {field}={config[field]!r} is not supported; it may be {harmless[0]!r}")
        # What diffusers' classes take for a missing field is not what Stable Diffusion's files say. PNDM cannot clip.
        absent = {
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "timestep_spacing": _CLASSES.get(name),
            "steps_offset": 0,
            "set_alpha_to_one": name != "PNDMScheduler",
            "clip_sample": name in ("DDPMScheduler", "DDIMScheduler"),
        }
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**absent | {key: value for key, value in config.items() if key in known})

    def to_json(self) -> dict[str, Any]:
        """The `scheduler_config.json` from which diffusers and `from_json` make this schedule again."""
        return {
            "_class_name": "DDPMScheduler",
            **dataclasses.asdict(self),
            "variance_type": "fixed_small",
            "trained_betas": None,
        }

    @functools.cached_property
    def alphas_cumprod(self) -> Float[np.ndarray, "t"]:
        """ab_t, float32, bit for bit PyTorch's.

        It spaces betas evenly by one fused multiply-add from the nearer end, and accumulates the product in float64.
        """
        root = np.sqrt if self.beta_schedule == "scaled_linear" else np.asarray
        start, end = np.float32(root(self.beta_start)), np.float32(root(self.beta_end))
        count = self.num_train_timesteps
        step = np.float64((end - start) / np.float32(max(count - 1, 1)))
        index = np.arange(count)
        spaced = np.where(index < count // 2, start + step * index, end - step * (count - 1 - index)).astype(np.float32)
        betas = spaced * spaced if self.beta_schedule == "scaled_linear" else spaced
        if self.rescale_betas_zero_snr:
            betas = _rescaled(betas)
        return _cumulative(betas)

    def timesteps(self, steps: int) -> Int[np.ndarray, "steps"]:
        """The timesteps that DDPM and DDIM visit in `steps` steps, descending (int32); `noise_levels.py` has others'.

        "leading": k floor(T / steps) + offset; "trailing": from T - 1 down by T / steps; "linspace": evenly from T -
        1 to 0.
        """
        count = self.num_train_timesteps
        if not 1 <= steps <= count:
            raise UserError(f"the number of steps must be between 1 and {count}, not {steps}")
        timesteps: np.ndarray
        if self.timestep_spacing == "leading":
            timesteps = np.arange(steps)[::-1] * (count // steps) + self.steps_offset
        elif self.timestep_spacing == "trailing":
            timesteps = np.round(np.arange(count, 0, -count / steps)[:steps]) - 1
        else:
            timesteps = np.round(np.linspace(0, count - 1, steps))[::-1]
        if timesteps.max() >= count:
            raise UserError(
                f"{steps} steps would begin at timestep {timesteps.max():.0f} of {count} (steps_offset): use fewer"
            )
        return timesteps.astype(np.int32)

    def add_noise(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) noise."""
        signal, sigma = self.levels(timesteps)
        return signal * latents + sigma * noise

    def velocity(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """v_t = sqrt(ab_t) noise - sqrt(1 - ab_t) x_0 (Salimans and Ho, 2022)."""
        signal, sigma = self.levels(timesteps)
        return signal * noise - sigma * latents

    def target(self, latents: Latents, noise: Latents, timesteps: Timesteps) -> Latents:
        """What the network learns to predict, by `prediction_type`: the noise, the velocity or the clean latents."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return self.velocity(latents, noise, timesteps)
        return latents

    def x0(self, prediction: Latents, latents: Latents, signal: Level, sigma: Level) -> Latents:
        """The clean latents that a prediction at `latents` = signal x_0 + sigma noise implies."""
        if self.prediction_type == "epsilon":
            return (latents - sigma * prediction) / signal
        if self.prediction_type == "v_prediction":
            return signal * latents - sigma * prediction
        return prediction

    def noise(self, prediction: Latents, latents: Latents, signal: Level, sigma: Level) -> Latents:
        """The noise that a prediction at `latents` = signal x_0 + sigma noise implies."""
        if self.prediction_type == "epsilon":
            return prediction
        if self.prediction_type == "v_prediction":
            return signal * prediction + sigma * latents
        return (latents - signal * prediction) / sigma

    def levels(self, timesteps: Timesteps) -> tuple[Level, Level]:
        """sqrt(ab_t) and sqrt(1 - ab_t), shaped to multiply images: (b, 1, 1, 1), or () for one timestep."""
        alpha = jnp.asarray(self.alphas_cumprod)[jnp.asarray(timesteps)]
        alpha = alpha.reshape(*alpha.shape, 1, 1, 1) if alpha.ndim else alpha
        return jnp.sqrt(alpha), jnp.sqrt(1 - alpha)


def _cumulative(betas: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    return np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32)


def _rescaled(betas: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """Betas whose sqrt(ab) is shifted to end on 0 and scaled to begin where it did."""
    root = np.sqrt(_cumulative(betas))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alphas = root**2
    return np.float32(1) - np.append(alphas[:1], alphas[1:] / alphas[:-1])
