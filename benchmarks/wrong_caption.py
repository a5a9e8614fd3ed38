"""Restores one photograph with the right captions, and with wrong captions on purpose (paper, Fig. 1).

python -m benchmarks.wrong_caption [--photo PHOTO --captions captions.jsonl]

Only the captions differ. Model (without a first stage), seed and settings are the same. Writes one picture with a
column for each set of captions. Below each result is its difference from the first one, amplified around grey. Prints
how much the results differ.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import xpsr_jax
from benchmarks.command_line import command_line
from benchmarks.tiny_quality import ROOT
from xpsr_jax.assets import DEMO, TINY_MODEL
from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.fidelity import psnr_y
from xpsr_jax.images.picture import Picture
from xpsr_jax.images.reading import read_image
from xpsr_jax.images.writing import write_picture
from xpsr_jax.inference.compare import side_by_side
from xpsr_jax.inference.compilation import use_compilation_cache, with_fast_convolutions
from xpsr_jax.inference.restore import restore

AMPLIFICATION = 8


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photo: The degraded photograph.
        captions: Its right captions.
        high: A wrong high-level caption.
        low: A wrong low-level caption.
        model: Model folder.
        steps: Sampling steps instead of the model's own.
        output: Picture to write, a JPEG.
        width: Width of a column, in pixels.
    """

    photo: Path = DEMO / "lr.png"
    captions: Path = DEMO / "captions.jsonl"
    high: str = "Two brown spaniel dogs lean out of the window of a weathered wooden house."
    low: str = "The image is sharp and clear, with little noise and no compression artifacts."
    model: Path = TINY_MODEL
    steps: int | None = None
    output: Path = ROOT / "docs" / "images" / "wrong_caption.jpg"
    width: int = 360


def run(arguments: Arguments) -> None:
    use_compilation_cache()
    lr, captions = read_image(arguments.photo), read_captions(arguments.captions)
    if arguments.photo.name not in captions:
        raise UserError(f"{arguments.captions} has no captions for {arguments.photo.name}")
    right = captions[arguments.photo.name]
    sets = {
        "right captions": right,
        "wrong content": Caption(arguments.high, right.low),
        "wrong quality": Caption(right.high, arguments.low),
        "both wrong": Caption(arguments.high, arguments.low),
    }
    model = with_fast_convolutions(xpsr_jax.load(arguments.model, first_stage="none"))
    sampling = model.defaults
    if arguments.steps is not None:
        sampling = dataclasses.replace(sampling, steps=arguments.steps)
    restored = restore(model, [lr] * len(sets), list(sets.values()), sampling)
    first = restored[0]
    columns = {}
    for (name, caption), image in zip(sets.items(), restored, strict=True):
        difference = image.astype(np.int16) - first
        print(
            f"{name}: high {caption.high!r}, low {caption.low!r}\n"
            f"  against the first: PSNR-Y {psnr_y(image, first):.1f} dB, mean difference "
            f"{np.abs(difference).mean():.2f} of 255"
        )
        enlarged = np.clip(128 + AMPLIFICATION * difference, 0, 255).astype(np.uint8)
        columns[name] = np.concatenate([_reduced(image, arguments.width), _reduced(enlarged, arguments.width)])
    write_picture(arguments.output, Picture(side_by_side(columns)), format="jpeg", quality=80)
    print(f"{arguments.output}; the lower row shows the differences from the first, times {AMPLIFICATION}")


def _reduced(image: np.ndarray, width: int) -> np.ndarray:
    height = round(image.shape[0] * width / image.shape[1])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
