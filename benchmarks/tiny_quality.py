"""Measures what a small XPSR is worth on photographs that it never saw, against bicubic enlargement.

python benchmarks/tiny_quality.py --photos PHOTOS

Fixed 512 x 512 crops of the photographs that configs/tiny.py holds out of training go through the whole degradation
(method §9) with fixed seeds, to 128 x 128 pixels of 8 bits. The model restores them at its own settings, also without
one or the other caption and without the negative prompt. The reference of every metric is the plain crop, not the
sharpened one that training aims at. Writes results.md, results.json (every single number) and one picture a photograph
(LR enlarged, restored, original) into the output folder.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import UInt8
from tqdm import tqdm

import xpsr_jax
from xpsr_jax.config import Sampling, load_config
from xpsr_jax.data.captions import Caption, describe, read_captions
from xpsr_jax.data.degradation import XPSR, degrade
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.fidelity import psnr_y, ssim_y
from xpsr_jax.evaluation.perceptual import Dists, Lpips
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.inference.image_io import check_writable, read_image, write_png
from xpsr_jax.inference.restore import restore
from xpsr_jax.weights.atomic import new_file
from xpsr_jax.weights.model_folder import Model

ROOT = Path(__file__).parents[1]
SEED = 2024
METRICS = {"PSNR-Y": "higher", "SSIM-Y": "higher", "LPIPS (alex)": "lower", "DISTS": "lower"}
BICUBIC, OURS = "bicubic", "ours"

Scores = dict[str, dict[str, list[float]]]  # method -> metric -> a number for each crop
Image = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Arguments:
    photos: Path
    """Folder with the photographs and captions.jsonl."""
    model: Path = ROOT / "xpsr_jax" / "assets" / "tiny"
    """Model folder."""
    config: str = str(ROOT / "configs" / "tiny.py")
    """The training configuration that names the photographs it held out."""
    output: Path = Path("outputs/tiny_quality")
    """Folder to write to."""
    crops: int = 3
    """Crops of each photograph."""
    quick: bool = False
    """Leave out the rows without captions and without the negative prompt."""
    steps: int | None = None
    """Sampling steps instead of the model's own."""
    guidance_scale: float | None = None
    """Guidance scale instead of the model's own."""


@dataclass(frozen=True)
class Crop:
    """One example: what it is cut from, the clean crop, its degraded version and that one's captions."""

    name: str
    original: Image
    lr: Image
    caption: Caption


def main(argv: Sequence[str] | None = None) -> int:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        run(arguments)
    except UserError as error:
        print(f"tiny_quality.py: {error}", file=sys.stderr)
        return 1
    return 0


def run(arguments: Arguments) -> None:
    begin = time.perf_counter()
    use_compilation_cache()
    check_writable(arguments.output)
    crops = cut_crops(arguments.photos, load_config(arguments.config).images.exclude, count=arguments.crops)
    model = xpsr_jax.load(arguments.model)
    sampling = model.defaults
    if arguments.steps is not None:
        sampling = dataclasses.replace(sampling, steps=arguments.steps)
    if arguments.guidance_scale is not None:
        sampling = dataclasses.replace(sampling, guidance_scale=arguments.guidance_scale)

    results: dict[str, list[Image]] = {BICUBIC: [enlarge(crop.lr, crop.original.shape) for crop in crops]}
    for name, (settings, captions) in variants(sampling, [crop.caption for crop in crops]).items():
        if name == OURS or not arguments.quick:
            results[name] = restore_all(model, crops, captions, settings, label=name)
    write_pictures(arguments.output, crops, results)

    scores = measure(crops, results)
    heading = (
        f"{len(crops)} crops of {len({crop.name for crop in crops})} photographs, full degradation, 128 → 512, "
        f"seed {SEED}; {sampling.steps} steps, guidance {sampling.guidance_scale} ({sampling.guidance_form}). "
        "Reference: the plain crop (not sharpened). Mean ± standard error over the crops."
    )
    table = f"{heading}\n\n{markdown(scores)}"
    record = {
        "about": heading,
        "sampling": dataclasses.asdict(sampling),
        "crops": [{"image": crop.name, **dataclasses.asdict(crop.caption)} for crop in crops],
        "scores": scores,
    }
    for name, text in (
        ("results.md", table),
        ("results.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n"),
    ):
        with new_file(arguments.output / name) as file:
            file.write_text(text, encoding="utf-8")
    print(f"\n{table}\n{time.perf_counter() - begin:.0f} s; written to {arguments.output}")


def cut_crops(photos: Path, names: Sequence[str], *, count: int, size: int = 512) -> list[Crop]:
    """`count` crops of each photograph, at fixed places and with fixed degradations.

    A crop depends on its photograph's place in `names` and its own number, not on how many there are. A photograph
    smaller than `size` is continued by reflection.
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
            rng = np.random.default_rng((SEED, i, j))
            top, left = (int(rng.integers(side - size + 1)) for side in photo.shape[:2])
            original = np.ascontiguousarray(photo[top : top + size, left : left + size])
            degraded = degrade(original.astype(np.float32) / 255, XPSR, rng)
            lr = np.rint(255 * degraded.lr).astype(np.uint8)
            crops.append(Crop(name, original, lr, Caption(captions[name].high, describe(degraded.drawn))))
    return crops


def variants(sampling: Sampling, captions: Sequence[Caption]) -> dict[str, tuple[Sampling, list[Caption]]]:
    """The rows of the table after bicubic: settings and captions (paper, Tables 2 and 5)."""
    return {
        OURS: (sampling, list(captions)),
        "without high-level captions": (sampling, [Caption("", caption.low) for caption in captions]),
        "without low-level captions": (sampling, [Caption(caption.high, "") for caption in captions]),
        "without negative prompt": (dataclasses.replace(sampling, negative_high=""), list(captions)),
    }


def restore_all(
    model: Model, crops: Sequence[Crop], captions: Sequence[Caption], sampling: Sampling, *, label: str
) -> list[Image]:
    pairs = tqdm(zip(crops, captions, strict=True), total=len(crops), desc=label, disable=None)
    return [restore(model, [crop.lr], [caption], sampling, names=[crop.name])[0] for crop, caption in pairs]


def enlarge(lr: Image, shape: tuple[int, ...]) -> Image:
    return cv2.resize(lr, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def measure(crops: Sequence[Crop], results: Mapping[str, Sequence[Image]]) -> Scores:
    """Every metric of every method on every crop."""
    lpips, dists = comparison(Lpips.load("alex")), comparison(Dists.load())
    scores: Scores = {method: {metric: [] for metric in METRICS} for method in results}
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


def comparison(metric: Lpips | Dists) -> Callable[[list[Image], Image], np.ndarray]:
    """The distance of several images to one reference, whose features are computed once."""

    @jax.jit
    def compare(metric, images, reference):
        return jax.vmap(lambda image: metric(image[None], reference[None])[0])(images)

    def of_8_bits(images: list[Image], reference: Image) -> np.ndarray:
        return np.asarray(compare(metric, jnp.asarray(np.stack(images)) / 255, jnp.asarray(reference) / 255))

    return of_8_bits


def markdown(scores: Scores) -> str:
    """The table: mean ± standard error, and against bicubic the difference (PSNR) or the ratio (the rest)."""
    lines = ["| | " + " | ".join(f"{metric} ({better} is better)" for metric, better in METRICS.items()) + " |"]
    lines.append("|---|" + "---|" * len(METRICS))
    for method, of_method in scores.items():
        cells = []
        for metric, values in of_method.items():
            digits = 2 if metric == "PSNR-Y" else 4
            mean, base = np.mean(values), np.mean(scores[BICUBIC][metric])
            error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
            against = f"{mean - base:+.2f} dB" if metric == "PSNR-Y" else f"{mean / base:.3f} ×"
            cells.append(f"{mean:.{digits}f} ± {error:.{digits}f}" + (f" ({against})" if method != BICUBIC else ""))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_pictures(folder: Path, crops: Sequence[Crop], results: Mapping[str, Sequence[Image]]) -> None:
    """One PNG a photograph; a row a crop: the LR image enlarged, restored, original."""
    for name in dict.fromkeys(crop.name for crop in crops):
        rows = [
            np.concatenate([results[BICUBIC][i], results[OURS][i], crop.original], axis=1)
            for i, crop in enumerate(crops)
            if crop.name == name
        ]
        write_png(folder / f"{Path(name).stem}.png", np.concatenate(rows))


if __name__ == "__main__":
    sys.exit(main())
