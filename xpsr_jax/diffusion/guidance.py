"""Classifier-free guidance against a negative prompt (paper, eq. 6; method §7, §11)."""

from typing import Literal

from jaxtyping import Array, Float

GuidanceForm = Literal["paper", "released"]


def guide(
    positive: Float[Array, "b h w c"],
    negative: Float[Array, "b h w c"],
    *,
    scale: float | Float[Array, ""],
    form: GuidanceForm,
) -> Float[Array, "b h w c"]:
    """Moves the prediction away from what the negative prompt predicts.

    Args:
        positive, negative: predictions (noise or velocity) under the positive and the negative prompts.
        scale: strength s; may be traced.
        form: "paper": positive + s (positive - negative); "released": negative + s (positive - negative), as the
            released code and Stable Diffusion have it. The paper's s equals the released form's s + 1.
    """
    difference = positive - negative
    if form == "paper":
        return positive + scale * difference
    if form == "released":
        return negative + scale * difference
    raise ValueError(f'guidance form "{form}" is unknown: use "paper" or "released"')


def is_guided(scale: float, form: GuidanceForm) -> bool:
    """Whether the negative half is run at all: s > 0 in the paper's form, s > 1 in the released one."""
    return scale > (0.0 if form == "paper" else 1.0)
