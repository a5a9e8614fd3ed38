"""Classifier-free guidance against a negative prompt (paper, eq. 6; method §7, §11)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from xpsr_jax.diffusion.choices import GuidanceForm


def guide(
    positive: Float[Array, "b h w c"],
    negative: Float[Array, "b h w c"],
    *,
    scale: float | Float[Array, ""],
    form: GuidanceForm,
    rescale: float | Float[Array, ""] = 0.0,
) -> Float[Array, "b h w c"]:
    """Moves the prediction away from the negative prompt's prediction.

    Args:
        positive, negative: predictions (noise or velocity) under the positive and the negative prompts.
        scale: strength s; may be traced.
        form: "paper": positive + s (positive - negative). "released": negative + s (positive - negative), as in the
            released code and in Stable Diffusion. The paper's form with s equals the released form with s + 1.
        rescale: guidance enlarges each image's standard deviation. This moves it back to that of the positive
            prediction: 0 not at all, 1 completely (Lin et al., 2023, eq. 15 and 16); may be traced.
    """
    if form not in ("paper", "released"):
        raise ValueError(f'guidance form "{form}" is unknown: use "paper" or "released"')
    guided = (positive if form == "paper" else negative) + scale * (positive - negative)
    ratio = _deviation(positive) / jnp.maximum(_deviation(guided), 1e-12)
    return guided * (1 - rescale + rescale * ratio)


def is_guided(scale: float, form: GuidanceForm) -> bool:
    """Whether the negative prompt is evaluated: s > 0 in the paper's form, s > 1 in the released form."""
    return scale > (0.0 if form == "paper" else 1.0)


def _deviation(prediction: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 1"]:
    return jnp.std(prediction, axis=(1, 2, 3), keepdims=True)
