"""What XPSR is without its parts: trainings that differ from configs/xpsr.py in one thing each.

    xpsr train --config ablations:serial --networks.base STABLE_DIFFUSION --images.folder PHOTOS

Table 3 of the paper compares ways to fuse the two captions; `serial`, `high` and `low` are its alternatives to
Semantic-Fusion Attention. The paper also trains variants for its Tables 4, on the Degradation-Free Constraint, and 6.
Their rows were not known to whoever wrote this file, so the others are the switches that the method has: the constraint
by pixels, by latents or not at all, its weight λ, and Conditional Attention. Its Tables 2 and 5 are flags of sample.py,
not trainings. Every other field is that of configs/xpsr.py. benchmarks/ablation_trainings.py trains some of them small.

    default                    XPSR itself
    serial                     the low-level caption after the high-level one, one stream
    high, low                  one caption alone
    unconstrained              no Degradation-Free Constraint: λ = 0, without its heads
    pixel, latent              the constraint's pixel heads alone, its latent heads alone
    lambda_0.005, lambda_0.5   λ ten times smaller, ten times larger than 0.05
    unconditional              no Conditional Attention: the UNet is Stable Diffusion's own, the ControlNet alone trains
"""

import dataclasses
from pathlib import Path
from typing import Any

from xpsr_jax.config import Config, load_config

# What each sets otherwise: fields of the ControlNet, of the UNet, and of the constraint.
_CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "serial": {"controlnet": {"fusion": "serial"}},
    "high": {"controlnet": {"fusion": "high"}},
    "low": {"controlnet": {"fusion": "low"}},
    "unconstrained": {"controlnet": {"return_rgbs": False, "use_latent_pred": False}, "loss": {"constraint": 0.0}},
    "pixel": {"controlnet": {"use_latent_pred": False}},
    "latent": {"controlnet": {"return_rgbs": False}},
    "lambda_0.005": {"loss": {"constraint": 0.005}},
    "lambda_0.5": {"loss": {"constraint": 0.5}},
    "unconditional": {"unet": {"conditional_attention": False}},
}
VARIANTS = tuple(_CHANGES)


def config(variant: str = "default") -> Config:
    return ablate(load_config(str(Path(__file__).with_name("xpsr.py"))), variant)


def ablate(whole: Config, variant: str) -> Config:
    """`whole` without the part that `variant` leaves out."""
    changes = _CHANGES[variant]
    networks = dataclasses.replace(
        whole.networks,
        controlnet=dataclasses.replace(whole.networks.controlnet, **changes.get("controlnet", {})),
        unet=dataclasses.replace(whole.networks.unet, **changes.get("unet", {})),
    )
    return dataclasses.replace(
        whole,
        name=whole.name if variant == "default" else f"{whole.name}_{variant}",
        networks=networks,
        trained=whole.trained if networks.unet.conditional_attention else ((r"controlnet\..*", True),),
        loss=dataclasses.replace(whole.loss, **changes.get("loss", {})),
    )
