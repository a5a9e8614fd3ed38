"""Measures how well autoencoders reproduce photographs that no training stage has seen, and how long decoding takes.

python benchmarks/autoencoder_quality.py --photos PHOTOS [MORE] --models MODEL [RUN ...]

It encodes and decodes 512 x 512 crops of the photographs that configs/tiny.py holds out, the same crops as in
benchmarks/tiny_quality.py. A model is a model folder, the folder of an autoencoder alone, or a training run, of which
the newest checkpoint is used.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_line import command_line
from benchmarks.tiny_quality import BICUBIC, CONFIG, markdown, reconstruct
from xpsr_jax.config import load_config
from xpsr_jax.evaluation.crops import JUDGES, Half, cut_crops, enlarge, halves, held_out, measure_crops
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.training.checkpoint_source import open_checkpoint
from xpsr_jax.weights.networks import AUTOENCODER, load_network
from xpsr_jax.weights.sources import is_training_checkpoint, open_source


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photos: Folders with the photographs, each with its captions.jsonl.
        models: Model folders, autoencoder folders or training runs.
        config: The training configuration that names the held-out photographs.
        half: The half of these photographs: choose settings with it, or report results on it.
        photographs: Use only that many of these photographs, from the first on; 0: all.
        crops: Crops of each photograph.
        size: Side of the crops, in pixels.
    """

    photos: tuple[Path, ...]
    models: tuple[Path, ...]
    config: str = CONFIG
    half: Half = "choose"
    photographs: int = 0
    crops: int = 1
    size: int = 512


def run(arguments: Arguments) -> None:
    use_compilation_cache()
    names = halves(held_out(load_config(arguments.config).images.exclude, *arguments.photos))[arguments.half]
    crops = cut_crops(
        arguments.photos, names[: arguments.photographs or None], count=arguments.crops, size=arguments.size
    )
    images = {BICUBIC: [enlarge(crop.lr, crop.original.shape) for crop in crops]}
    seconds = {BICUBIC: 0.0}
    for path in arguments.models:
        source = (open_checkpoint if is_training_checkpoint(path) else open_source)(path)
        autoencoder = load_network(AUTOENCODER, source.networks["autoencoder"]())
        images[str(path)], seconds[str(path)] = reconstruct(autoencoder, crops)
    scores = measure_crops(crops, images, metrics=JUDGES)
    print(f"{len(crops)} crops of {len(names)} photographs, the half to {arguments.half}; seconds are for decoding\n")
    print(markdown(scores, [crop.name for crop in crops], seconds))


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
