"""Short, equal trainings of the small model, each without one part of XPSR. benchmarks/ablations.py compares them.

python -m benchmarks.ablation_trainings --photos PHOTOS --output runs/study [--variants serial high] [--seeds 0]

The paper starts from Stable Diffusion. Here, each training starts from the shipped model's UNet, autoencoder and text
encoder, frozen and without Conditional Attention. A new ControlNet (a copy of the UNet) and new Conditional Attention
are trained. Unlike Stable Diffusion, this UNet was trained together with the whole XPSR. That may favour variants that
are similar to it.

Variants with the same seed see the same crops, degradations, noise and times in the same order. The photographs are
those of configs/tiny.py without the held-out ones. An interrupted training is resumed. For a finished training, its
settings are checked.
"""

import dataclasses
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file, save_file

from benchmarks.command_line import command_line
from benchmarks.tiny_quality import MODEL
from configs import ablations, tiny
from xpsr_jax.config import Config, Networks, Validation
from xpsr_jax.evaluation.crops import held_out
from xpsr_jax.files import new_folder
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.training.loop import train
from xpsr_jax.weights.networks import CONTROLNET, read_config

# The paper's Table 3 and Table 4; "default" is in both.
VARIANTS = ("default", "serial", "high", "low", "unconstrained", "pixel", "latent")
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photos: Folder with the photographs and captions.jsonl.
        output: Folder of the runs.
        variants: Names of variants in configs/ablations.py.
        seeds: Each variant is trained once with each seed.
        steps: Steps of each training.
    """

    photos: Path
    output: Path = Path("runs/study")
    variants: tuple[str, ...] = VARIANTS
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 500


def run(arguments: Arguments) -> int:
    use_compilation_cache()
    for seed in arguments.seeds:
        for variant in arguments.variants:
            if train(configure(arguments, variant, seed)) is None:
                return 130
    return 0


def configure(arguments: Arguments, variant: str, seed: int) -> Config:
    """The training of one variant. Only the variant and the seed differ between trainings."""
    own = tiny.config()
    shipped = read_config(CONTROLNET, MODEL / "controlnet")
    controlnet = dataclasses.replace(shipped, return_rgbs=True, use_latent_pred=True)
    unseen = held_out(own.images.exclude, arguments.photos)
    shared = dataclasses.replace(
        own,
        steps=arguments.steps,
        seed=seed,
        trained=ablations.config().trained,
        images=dataclasses.replace(own.images, folder=arguments.photos, mixture=(), exclude=unseen),
        networks=Networks(
            base=(plain_diffusion(arguments.output / "base"),),
            from_scratch=("controlnet",),
            controlnet=controlnet,
        ),
        # The training is shorter than the small model's own, so warmup and averaging are shorter too.
        optimizer=dataclasses.replace(own.optimizer, warmup=50, ema=0.99),
        validation=Validation(every=0),
        log_every=25,
    )
    name = f"{variant}-{seed}"
    return dataclasses.replace(ablations.ablate(shared, variant), name=name, run=arguments.output / name)


def plain_diffusion(folder: Path) -> Path:
    """The shipped model without the parts that XPSR adds: no ControlNet, no Conditional Attention."""
    if not folder.is_dir():
        with new_folder(folder) as new:
            for name in ("vae", "text_encoder", "tokenizer", "scheduler", "unet"):
                shutil.copytree(MODEL / name, new / name)
            weights = load_file(new / UNET_WEIGHTS)
            kept = {key: value for key, value in weights.items() if ".pixel_attentions." not in key}
            save_file(kept, new / UNET_WEIGHTS, metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
