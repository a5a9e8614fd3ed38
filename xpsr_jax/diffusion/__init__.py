"""The diffusion process: noise schedule, samplers, classifier-free guidance."""

from xpsr_jax.diffusion.ddim import Ddim
from xpsr_jax.diffusion.ddpm import Ddpm
from xpsr_jax.diffusion.dpm_solver import DpmSolver
from xpsr_jax.diffusion.euler import Euler
from xpsr_jax.diffusion.guidance import guide, is_guided
from xpsr_jax.diffusion.samplers import Sampler, advance, sample, start_latents
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.diffusion.unipc import UniPc

__all__ = [
    "Ddim",
    "Ddpm",
    "DpmSolver",
    "Euler",
    "Sampler",
    "Schedule",
    "UniPc",
    "advance",
    "guide",
    "is_guided",
    "sample",
    "start_latents",
]
