"""What settings name in words. Nothing here imports JAX."""

from typing import Literal

SamplerName = Literal["ddpm", "ddim", "dpm_solver", "unipc", "euler", "euler_ancestral", "consistency"]
"""A sampler, see `making.make_sampler` and docs/reference/sampling.md."""

KARRAS: tuple[SamplerName, ...] = ("dpm_solver", "unipc", "euler")
"""Samplers that can visit Karras' noise levels."""

GuidanceForm = Literal["paper", "released"]
"""A form of classifier-free guidance, see `guidance.guide`."""

Start = Literal["lr", "noise", "lr_noised_twice"]
"""What sampling starts from, see `samplers.start_latents`."""
