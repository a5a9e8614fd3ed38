"""Restores the photograph that ships with the package, and shows input, result and original side by side."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from xpsr_jax.assets import DEMO, TINY_MODEL
from xpsr_jax.buckets.paths import as_path
from xpsr_jax.cli.run import command
from xpsr_jax.errors import UserError, in_one_line, say
from xpsr_jax.files import check_writable


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        folder: Folder for restored.png and comparison.png.
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("demo")


@command(interrupted="interrupted", lower="close other programs")
def main(argv: Sequence[str] | None) -> None:
    """Runs the command line; returns the exit code: 0, 1 after an error, 130 if interrupted."""
    run(as_path(tyro.cli(arguments(), args=argv, description=__doc__, prog="xpsr demo").folder))


def arguments() -> type[Arguments]:
    """The type that a command line is parsed into."""
    return Arguments


def run(folder: Path) -> None:
    """Writes restored.png and comparison.png into `folder` and prints their paths. Raises `UserError`."""
    # Imported late, so that --help is fast.
    import numpy as np
    from PIL import Image

    import xpsr_jax
    from xpsr_jax.data.captions import read_captions
    from xpsr_jax.images.reading import read_image
    from xpsr_jax.images.writing import write_png
    from xpsr_jax.inference.compare import side_by_side
    from xpsr_jax.inference.compilation import use_compilation_cache
    from xpsr_jax.inference.restore import Restorer

    begin = time.perf_counter()
    use_compilation_cache()
    check_writable(folder)
    photo = DEMO / "lr.png"
    lr, original = read_image(photo), read_image(photo.with_name("original.png"))
    caption = read_captions(photo.with_name("captions.jsonl"))[photo.name]
    say(f"{photo}, {lr.shape[1]} × {lr.shape[0]} pixels\n  content: {caption.high}\n  quality: {caption.low}")

    model = xpsr_jax.load(TINY_MODEL)
    say(f"Restoring with the model that ships with the package. {in_one_line(model.note)}")
    restorer = Restorer(model)
    with tqdm(total=restorer.steps, unit="step", disable=None) as bar:
        [restored] = restorer([lr], [caption], on_steps=bar.update)
    if restored is None:
        raise UserError("the networks computed NaN or infinity: the shipped model is damaged; install xpsr-jax again")

    height, width = restored.shape[:2]
    bicubic = np.asarray(Image.fromarray(lr).resize((width, height), Image.Resampling.BICUBIC))
    pictures = {"low resolution (bicubic)": bicubic, "restored": restored, "original": original}
    outputs = {"restored.png": restored, "comparison.png": side_by_side(pictures)}
    for name, image in outputs.items():
        write_png(folder / name, image)
    say("\n  ".join([f"Done in {time.perf_counter() - begin:.0f} s:", *(str(folder / name) for name in outputs)]))
    say("To restore your own photograph: xpsr restore PHOTO --output restored --missing-captions empty")
