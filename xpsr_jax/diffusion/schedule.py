"""Settings of the diffusion process (method §6, §7), read from diffusers' `scheduler_config.json`.

`process.py` uses them for computing; this module does not import JAX.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from xpsr_jax.errors import UserError
from xpsr_jax.serialisation import Range, check_fields, from_json

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing", "linspace"]

# The default of `timestep_spacing` in diffusers' classes. For any other class the field is required.
_CLASSES: dict[str, Spacing] = {
    "DDPMScheduler": "leading",
    "DDIMScheduler": "leading",
    "PNDMScheduler": "leading",
    "DPMSolverMultistepScheduler": "linspace",
    "UniPCMultistepScheduler": "linspace",
    "EulerDiscreteScheduler": "linspace",
    "EulerAncestralDiscreteScheduler": "linspace",
}

# Fields that would change the process in an unsupported way, with the values that change nothing.
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
        beta_start: variance added at the first timestep.
        beta_end: variance added at the last timestep.
        beta_schedule: "scaled_linear" (square roots evenly spaced) or "linear".
        prediction_type: the network predicts the noise ("epsilon"), the velocity ("v_prediction") or the clean latents
            ("sample").
        rescale_betas_zero_snr: rescale the betas so that the last timestep is pure noise, ab = 0 (Lin et al., 2023,
            algorithm 1).
        timestep_spacing: the choice of a sampler's timesteps (`process.visited_timesteps`).
        steps_offset: added to the timesteps with "leading" spacing.
        set_alpha_to_one: whether DDIM-like samplers end at ab = 1 instead of ab_0. DDPM always ends at 1.
        clip_sample: whether a sampler clips its estimate of the clean latents to ± `clip_sample_range`. Off in latent
            diffusion.
    """

    num_train_timesteps: Annotated[int, Range(1, 100_000)] = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Spacing = "leading"
    steps_offset: Annotated[int, Range(0, 100_000)] = 1
    set_alpha_to_one: bool = False
    clip_sample: bool = False
    clip_sample_range: Annotated[float, Range(0, above=True)] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UserError(f"need 0 < beta_start <= beta_end < 1, not {self.beta_start} and {self.beta_end}")

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: object = "schedule") -> "Schedule":
        """Reads a `scheduler_config.json`. Only the noise schedule is used, which is the same for every class.

        Fields about a sampler (its order, Karras' noise levels) are ignored, because settings choose the sampler. A
        missing field has the default of diffusers.

        Args:
          where: the file's name, for messages.

        Raises:
          UserError: a value is wrong, or describes a process that is not supported.
        """
        name = config.get("_class_name", "DDPMScheduler")
        # A class name that is not a string counts as unknown.
        name = name if isinstance(name, str) else repr(name)
        if name not in _CLASSES and config.get("timestep_spacing") is None:
            raise UserError(f"{where}: {name} without timestep_spacing is ambiguous; add that field")
        for field, harmless in _UNSUPPORTED.items():
            if config.get(field) not in (*harmless, None):
                raise UserError(f"{where}: {field}={config[field]!r} is not supported; it may be {harmless[0]!r}")
        # The defaults of diffusers' classes, which differ from Stable Diffusion's files. PNDM never clips.
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
        said = {key: value for key, value in config.items() if key in known and value is not None}
        return from_json(cls, absent | said, where)

    def to_json(self) -> dict[str, Any]:
        """The `scheduler_config.json` from which diffusers and `from_json` can make this schedule again."""
        return {
            "_class_name": "DDPMScheduler",
            **dataclasses.asdict(self),
            "variance_type": "fixed_small",
            "trained_betas": None,
        }
