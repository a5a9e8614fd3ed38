"""Measures how much results in bfloat16 differ from results in float32, and whether they are worse.

    python -m benchmarks.bfloat16 --photos PHOTOS

The crops are those of benchmarks/tiny_quality.py. The model's first stage is not used. Prints the difference between
the two results of the same image and seed, and the distance of each from the original.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import xpsr_jax
from benchmarks.command_line import command_line
from benchmarks.tiny_quality import CONFIG, MODEL, restore_all
from xpsr_jax.config import load_config
from xpsr_jax.evaluation.crops import cut_crops, held_out, measure_crops
from xpsr_jax.inference.compilation import use_compilation_cache


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photos: Folder with the photographs and captions.jsonl.
        model: Model folder.
        config: The training configuration that names the held-out photographs.
        crops: Crops of each photograph.
    """

    photos: Path
    model: Path = MODEL
    config: str = CONFIG
    crops: int = 1


def run(arguments: Arguments) -> None:
    use_compilation_cache()
    names = held_out(load_config(arguments.config).images.exclude, arguments.photos)
    crops = cut_crops(arguments.photos, names, count=arguments.crops)
    results = {}
    for dtype in ("float32", "bfloat16"):
        model = xpsr_jax.load(arguments.model, dtype=jnp.dtype(dtype), first_stage="none")
        results[dtype] = restore_all(model, crops, [crop.caption for crop in crops], model.defaults, label=dtype)
    apart = np.stack(results["float32"]).astype(np.float64) - np.stack(results["bfloat16"])
    psnr = np.mean(10 * np.log10(255**2 / np.mean(apart**2, axis=(1, 2, 3))))
    print(f"{len(crops)} crops: {np.abs(apart).mean():.2f} grey levels apart on average, {psnr:.1f} dB")
    for dtype, scores in measure_crops(crops, results).items():
        print(f"{dtype:9s} " + ", ".join(f"{metric} {np.mean(values):.4f}" for metric, values in scores.items()))


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
