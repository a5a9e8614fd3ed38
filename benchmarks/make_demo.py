"""Makes xpsr_jax/assets/demo: a photograph that the small model has not seen, degraded as in training (method §9).

python -m benchmarks.make_demo FOLDER_OF_PHOTOS
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from xpsr_jax.assets import DEMO
from xpsr_jax.data.captions import Caption, read_captions, write_captions
from xpsr_jax.data.config import DegradationConfig
from xpsr_jax.data.degradation import degrade
from xpsr_jax.data.quality import describe
from xpsr_jax.data.rounding import round_to_uint8
from xpsr_jax.images.reading import read_image
from xpsr_jax.images.writing import write_png

PHOTO = "palapeli_european_honey_bee.jpg"
# The photograph is reduced by this factor, so that it is as sharp as its pixels allow. Then the square is cut out.
REDUCED_BY = 2
TOP, LEFT, SIDE = 80, 60, 512
SEED = 0


def main(folder: Path) -> None:
    photo = Image.fromarray(read_image(folder / PHOTO)).reduce(REDUCED_BY)
    original = np.asarray(photo)[TOP:, LEFT:][:SIDE, :SIDE]
    rng = np.random.default_rng(SEED)
    degraded = degrade(original.astype(np.float32) / 255, DegradationConfig(), rng)
    write_png(DEMO / "original.png", original)
    write_png(DEMO / "lr.png", round_to_uint8(degraded.lr))
    high = read_captions(folder / "captions.jsonl")[PHOTO].high
    write_captions(DEMO / "captions.jsonl", {"lr.png": Caption(high, describe(degraded.drawn, rng))})
    print(degraded.drawn)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
