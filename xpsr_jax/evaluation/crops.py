"""Fixed, degraded crops of photographs, and the quality of their restored versions. The benchmarks use them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8
from tqdm import tqdm

from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.data.config import XPSR
from xpsr_jax.data.degradation import degrade
from xpsr_jax.data.quality import describe
from xpsr_jax.data.rounding import round_to_uint8
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.fidelity import psnr_y, ssim_y
from xpsr_jax.evaluation.metrics import load_metric
from xpsr_jax.evaluation.perceptual import Dists, Lpips
from xpsr_jax.images.reading import read_image

CROP_SEED = 2024
METRICS = {"PSNR-Y": "higher", "SSIM-Y": "higher", "LPIPS (alex)": "lower", "DISTS": "lower"}
# One more metric, with a backbone with which no small model is trained.
JUDGES = {**METRICS, "LPIPS (vgg)": "lower"}
_LOADED: dict[str, Literal["lpips_alex", "lpips_vgg", "dists"]] = {
    "LPIPS (alex)": "lpips_alex",
    "LPIPS (vgg)": "lpips_vgg",
    "DISTS": "dists",
}

RgbImage = UInt8[np.ndarray, "h w 3"]
Half = Literal["choose", "report"]
CropScores = dict[str, dict[str, list[float]]]  # method -> metric -> a number for each crop


@dataclass(frozen=True)
class Crop:
    """One crop of a photograph.

    Attributes:
        name: file name of the photograph.
        original: the crop.
        lr: its degraded version. Its sides are a quarter as long.
        caption: captions of `lr`.
    """

    name: str
    original: RgbImage
    lr: UInt8[np.ndarray, "h/4 w/4 3"]
    caption: Caption


def held_out(names: Sequence[str], *photos: Path) -> tuple[str, ...]:
    """The names of held-out photographs that are in one of the folders. Raises UserError if there are none."""
    if found := tuple(name for name in names if any((folder / name).is_file() for folder in photos)):
        return found
    raise UserError(f"{', '.join(map(str, photos))}: has none of the held-out photographs")


def halves(names: Sequence[str]) -> dict[Half, tuple[str, ...]]:
    """Splits held-out photographs into two halves: one to choose settings with, one to report their results."""
    return {"choose": tuple(names[0::2]), "report": tuple(names[1::2])}


def cut_crops(photos: Path | Sequence[Path], names: Sequence[str], *, count: int, size: int = 512) -> list[Crop]:
    """Cuts `count` crops of each photograph, at fixed positions and with fixed degradations.

    A crop depends on the photograph's index in `names` and on its own index, not on the number of crops. A photograph
    smaller than `size` is padded by reflection.

    Args:
        photos: the folder or folders of the photographs.
        names: file names of the photographs.
        count: crops of each photograph.
        size: side of a crop, in pixels.

    Raises UserError if a photograph has no caption in its folder's captions.jsonl.
    """
    folders = (photos,) if isinstance(photos, Path) else tuple(photos)
    captions_of = {folder: read_captions(folder / "captions.jsonl") for folder in folders}
    crops = []
    for i, name in enumerate(names):
        where = next((folder for folder, captions in captions_of.items() if name in captions), None)
        if where is None:
            files = ", ".join(str(folder / "captions.jsonl") for folder in folders)
            raise UserError(f"{files}: there is no caption for {name}")
        captions, photo = captions_of[where], read_image(where / name)
        below, right = (max(0, size - side) for side in photo.shape[:2])
        photo = cv2.copyMakeBorder(photo, 0, below, 0, right, cv2.BORDER_REFLECT_101)
        for j in range(count):
            rng = np.random.default_rng((CROP_SEED, i, j))
            top, left = (int(rng.integers(side - size + 1)) for side in photo.shape[:2])
            original = np.ascontiguousarray(photo[top : top + size, left : left + size])
            degraded = degrade(original.astype(np.float32) / 255, XPSR, rng)
            caption = Caption(captions[name].high, describe(degraded.drawn))
            crops.append(Crop(name, original, round_to_uint8(degraded.lr), caption))
    return crops


def enlarge(lr: RgbImage, shape: tuple[int, ...]) -> UInt8[np.ndarray, "H W 3"]:
    """Enlarges an LR image (bicubic) to the (height, width) in `shape`. This is the baseline for restored images."""
    return cv2.resize(lr, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def measure_crops(
    crops: Sequence[Crop], results: Mapping[str, Sequence[RgbImage]], *, metrics: Iterable[str] = METRICS
) -> CropScores:
    """Measures every metric of every method on every crop.

    Args:
        crops: the crops.
        results: for each method, one image for each crop.
        metrics: names in `JUDGES`.
    """
    measures = {metric: _measure(metric) for metric in metrics}
    scores: CropScores = {method: {metric: [] for metric in measures} for method in results}
    for i, crop in enumerate(tqdm(crops, desc="measuring", disable=None)):
        images = [images[i] for images in results.values()]
        for metric, measure in measures.items():
            for method, value in zip(scores, measure(images, crop.original), strict=True):
                scores[method][metric].append(float(value))
    return scores


def _measure(metric: str) -> Callable[[list[RgbImage], RgbImage], Iterable[float]]:
    """Returns a function that measures several images against one reference."""
    if metric in ("PSNR-Y", "SSIM-Y"):
        fidelity = psnr_y if metric == "PSNR-Y" else ssim_y
        return lambda images, reference: [fidelity(image, reference) for image in images]
    loaded = load_metric(_LOADED[metric])
    assert isinstance(loaded, Lpips | Dists)
    return comparison(loaded)


def comparison(metric: Lpips | Dists) -> Callable[[list[RgbImage], RgbImage], np.ndarray]:
    """Returns a function for the distances of several images to one reference. Its features are computed once."""

    @jax.jit
    def compare(metric: Lpips | Dists, images: Array, reference: Array) -> Array:
        # One image after the other, because VGG16's features of one image already take gigabytes.
        distances: Array = jax.lax.map(lambda image: metric(image[None], reference[None])[0], images)
        return distances

    def of_8_bits(images: list[RgbImage], reference: RgbImage) -> np.ndarray:
        return np.asarray(compare(metric, jnp.asarray(np.stack(images)) / 255, jnp.asarray(reference) / 255))

    return of_8_bits
