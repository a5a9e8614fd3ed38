"""The diffusion process: noise schedule, samplers, classifier-free guidance."""

from xpsr_jax.diffusion.guidance import guide, is_guided
from xpsr_jax.diffusion.samplers import Ddpm, advance, sample, start_latents
from xpsr_jax.diffusion.schedule import Schedule

__all__ = ["Ddpm", "Schedule", "advance", "guide", "is_guided", "sample", "start_latents"]
