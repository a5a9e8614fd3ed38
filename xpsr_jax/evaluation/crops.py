"""Fixed crops of photographs, degraded, and how close to them restored ones come: what the benchmarks measure on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from xpsr_jax.evaluation.perceptual import Dists, Lpips
from xpsr_jax.images.reading import read_image

CROP_SEED = 2024
METRICS = {"PSNR-Y": "higher", "SSIM-Y": "higher", "LPIPS (alex)": "lower", "DISTS": "lower"}

RgbImage = UInt8[np.ndarray, "h w 3"]
CropScores = dict[str, dict[str, list[float]]]  # method -> metric -> a number for each crop


@dataclass(frozen=True)
class Crop:
    """One crop of a photograph.

    Attributes:
        name: of the photograph.
        original: the crop.
        lr: its degraded version, four times smaller.
        caption: captions of `lr`.
    """

    name: str
    original: RgbImage
    lr: UInt8[np.ndarray, "h/4 w/4 3"]
    caption: Caption


def cut_crops(photos: Path, names: Sequence[str], *, count: int, size: int = 512) -> list[Crop]:
    """`count` crops of each photograph, at fixed places and with fixed degradations.

    A crop depends on its photograph's place in `names` and its own number, not on how many there are. A photograph
    smaller than `size` is continued by reflection. Raises UserError if one has no caption in captions.jsonl.
    """
    captions = read_captions(photos / "captions.jsonl")
    crops = []
    for i, name in enumerate(names):
        if name not in captions:
            raise UserError(f"{photos / 'captions.jsonl'} has no caption for {name}")
        photo = read_image(photos / name)
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
    """Bicubic enlargement to (height, width), the first two of `shape`: what restoring is compared with."""
    return cv2.resize(lr, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def measure_crops(crops: Sequence[Crop], results: Mapping[str, Sequence[RgbImage]]) -> CropScores:
    """Every metric of every method on every crop; `results` has an image for each crop."""
    lpips, dists = comparison(Lpips.load("alex")), comparison(Dists.load())
    scores: CropScores = {method: {metric: [] for metric in METRICS} for method in results}
    for i, crop in enumerate(tqdm(crops, desc="measuring", disable=None)):
        images = [images[i] for images in results.values()]
        values = np.array(
            [
                [psnr_y(image, crop.original) for image in images],
                [ssim_y(image, crop.original) for image in images],
                lpips(images, crop.original),
                dists(images, crop.original),
            ]
        )
        for metric, row in zip(METRICS, values, strict=True):
            for method, value in zip(scores, row, strict=True):
                scores[method][metric].append(float(value))
    return scores


def comparison(metric: Lpips | Dists) -> Callable[[list[RgbImage], RgbImage], np.ndarray]:
    """The distance of several images to one reference, whose features are computed once."""

    @jax.jit
    def compare(metric: Lpips | Dists, images: Array, reference: Array) -> Array:
        # One after the other: VGG16's features of one image take gigabytes as it is.
        distances: Array = jax.lax.map(lambda image: metric(image[None], reference[None])[0], images)
        return distances

    def of_8_bits(images: list[RgbImage], reference: RgbImage) -> np.ndarray:
        return np.asarray(compare(metric, jnp.asarray(np.stack(images)) / 255, jnp.asarray(reference) / 255))

    return of_8_bits
