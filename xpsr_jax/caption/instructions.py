"""The instructions for a captioner (method §10)."""

from dataclasses import dataclass
from typing import Literal

HIGH = "Please provide a descriptive summary of the content of this image."
Which = Literal["both", "high", "low"]
Preset = Literal["paper", "released"]


@dataclass(frozen=True)
class Instructions:
    """The two instructions. An empty one is not sent."""

    high: str = HIGH
    low: str = ""


PRESETS: dict[Preset, Instructions] = {
    # The paper's instruction for LLaVA.
    "paper": Instructions(
        low=(
            "Please describe the quality of this image and evaluate it based on factors such as clarity, color, "
            "noise, and lighting."
        )
    ),
    # The released code's instruction for Q-Instruct.
    "released": Instructions(low="Describe and evaluate the quality of the image."),
}


def instructions(preset: Preset, ask: Which) -> Instructions:
    """The instructions of a preset, without the one that `ask` leaves out."""
    both = PRESETS[preset]
    return Instructions("" if ask == "low" else both.high, "" if ask == "high" else both.low)
