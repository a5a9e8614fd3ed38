"""Restores the photograph that ships with the package, and puts before, after and the original side by side.

python -m xpsr_jax.demo [FOLDER]        # FOLDER: where to write, demo/ if not given
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import xpsr_jax
from xpsr_jax.data.captions import read_captions
from xpsr_jax.errors import UserError
from xpsr_jax.files import check_writable
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.inference.image_io import read_image, write_png
from xpsr_jax.inference.restore import Restorer

ASSETS = Path(__file__).parent / "assets"


def main(argv: Sequence[str]) -> int:
    if len(argv) > 1 or any(each.startswith("-") for each in argv):
        print(__doc__)
        return 0 if argv[0] in ("-h", "--help") else 2
    try:
        run(Path(argv[0] if argv else "demo"))
    except UserError as error:
        print(f"xpsr_jax.demo: {error}", file=sys.stderr)
        return 1
    return 0


def run(folder: Path) -> None:
    """Writes restored.png and comparison.png into `folder` and says where they are. Raises `UserError`."""
    begin = time.perf_counter()
    use_compilation_cache()
    check_writable(folder)
    photo = ASSETS / "demo" / "lr.png"
    lr, original = read_image(photo), read_image(photo.with_name("original.png"))
    caption = read_captions(photo.with_name("captions.jsonl"))[photo.name]
    print(f"{photo}, {lr.shape[1]} × {lr.shape[0]} pixels\n  what is in it: {caption.high}\n  how it is: {caption.low}")

    model = xpsr_jax.load(ASSETS / "tiny")
    print(f"Restoring it with the model that ships with the package. {model.note}")
    restorer = Restorer(model)
    with tqdm(total=restorer.sampling.steps, unit="step", disable=None) as bar:
        [restored] = restorer([lr], [caption], on_steps=bar.update)
    if restored is None:
        raise UserError("the networks computed NaN or infinity: the tiny model's files must be damaged")

    height, width = restored.shape[:2]
    bicubic = np.asarray(Image.fromarray(lr).resize((width, height), Image.Resampling.BICUBIC))
    pictures = {"low resolution (bicubic)": bicubic, "restored": restored, "original": original}
    outputs = {"restored.png": restored, "comparison.png": side_by_side(pictures)}
    for name, image in outputs.items():
        write_png(folder / name, image)
    print(f"Done in {time.perf_counter() - begin:.0f} s:", *(folder / name for name in outputs), sep="\n  ")
    print("A photograph of your own: .venv/bin/python sample.py PHOTO --output outputs --missing-captions empty")


def side_by_side(pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Pictures of one height in a row, each under its label."""
    gap, header = 8, 32
    height = next(iter(pictures.values())).shape[0]
    width = sum(picture.shape[1] + gap for picture in pictures.values()) - gap
    canvas = Image.new("RGB", (width, header + height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=18)
    left = 0
    for label, picture in pictures.items():
        canvas.paste(Image.fromarray(picture), (left, header))
        draw.text((left + picture.shape[1] / 2, header / 2), label, fill="black", font=font, anchor="mm")
        left += picture.shape[1] + gap
    return np.asarray(canvas)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
