"""Ablations of XPSR. Each variant differs from configs/xpsr.py in one thing.

    xpsr train --config ablations:serial --networks.base STABLE_DIFFUSION --images.folder PHOTOS

Table 3 of the paper compares ways to fuse the two captions. `serial`, `high` and `low` are its alternatives to
Semantic-Fusion Attention. Table 4 has the Degradation-Free Constraint on pixels, on latents, or not at all: `pixel`,
`latent` and `unconstrained`. The other variants are further options of the method: the weight λ of the constraint, and
Conditional Attention. Table 6, on Stable Diffusion 2.1, is configs/sd21.py. Tables 2 and 5 are options of
`xpsr restore`, which need no training. All other fields are those of configs/xpsr.py.
benchmarks/ablation_trainings.py trains some variants at a small size.

    default                    XPSR itself
    serial                     one stream: first the high-level caption, then the low-level one
    high, low                  only one of the captions
    unconstrained              no Degradation-Free Constraint: λ = 0, without its heads
    pixel, latent              only the pixel heads of the constraint, only its latent heads
    lambda_0.005, lambda_0.5   λ ten times smaller, ten times larger than 0.05
    unconditional              no Conditional Attention: Stable Diffusion's own UNet, and only the ControlNet is trained
"""

import dataclasses
from pathlib import Path
from typing import Any

from xpsr_jax.config import Config, load_config

# The changes of each variant: fields of the ControlNet, of the UNet, and of the losses.
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
    """The config `whole`, changed to `variant`."""
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
