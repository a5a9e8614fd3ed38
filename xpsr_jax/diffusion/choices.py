"""Names of samplers, guidance forms and starts in settings. This module does not import JAX."""

from typing import Literal

SamplerName = Literal["ddpm", "ddim", "dpm_solver", "unipc", "euler", "euler_ancestral", "consistency"]
"""The name of a sampler (`making.make_sampler`, docs/reference/sampling.md)."""

KARRAS: tuple[SamplerName, ...] = ("dpm_solver", "unipc", "euler")
"""Samplers that can visit Karras' noise levels."""

GuidanceForm = Literal["paper", "released"]
"""The name of a form of classifier-free guidance (`guidance.guide`)."""

Start = Literal["lr", "lr_without_noise", "noise", "lr_noised_twice"]
"""The name of a start of sampling (`samplers.start_latents`)."""
