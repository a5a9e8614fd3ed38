"""Measures the quality of a small XPSR, and of its parts, on photographs that it has not seen.

python benchmarks/tiny_quality.py --photos PHOTOS [MORE]

Fixed 512 x 512 crops of the photographs that configs/tiny.py holds out are degraded by the whole degradation (method
§9) with fixed seeds, to 128 x 128 pixels of 8 bits. They are enlarged, cleaned by the first stage alone, and restored
with the model's own settings, also without one part or another. The reference of every metric is the plain crop, not
the sharpened crop that is the target in training. Writes results.md, results.json (all numbers) and one picture for
each photograph (LR enlarged, first stage, restored, original) into the output folder.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import xpsr_jax
from benchmarks.command_line import command_line
from benchmarks.niqe import BLOCK, niqe
from xpsr_jax.config import Sampling, load_config
from xpsr_jax.data.captions import Caption
from xpsr_jax.diffusion.process import steps_for
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import (
    CROP_SEED,
    JUDGES,
    Crop,
    CropScores,
    Half,
    RgbImage,
    cut_crops,
    enlarge,
    halves,
    held_out,
    measure_crops,
)
from xpsr_jax.files import check_writable, new_file
from xpsr_jax.images.writing import write_png
from xpsr_jax.inference.compilation import use_compilation_cache, with_fast_convolutions
from xpsr_jax.inference.restore import Restorer, not_finite, restore
from xpsr_jax.models.autoencoder import Autoencoder
from xpsr_jax.weights.model_folder import Model

ROOT = Path(__file__).parents[1]
# The small model, and the configuration that names the photographs that it has not seen.
MODEL, CONFIG = ROOT / "xpsr_jax" / "assets" / "tiny", str(ROOT / "configs" / "tiny.py")
BICUBIC, FIRST_STAGE, OURS, WITHOUT = "bicubic", "first stage alone", "ours", "without first stage"
AUTOENCODER = "autoencoder alone, of the originals"
NIQE = "NIQE"
_BETTER = {**JUDGES, NIQE: "lower"}
# The rows that are measured with --quick.
_QUICK = (BICUBIC, FIRST_STAGE, OURS, WITHOUT)


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photos: Folders with the photographs, each with its captions.jsonl.
        model: Model folder.
        first_stage: As for sample.py: "own", "none", or the path of another first stage.
        config: The training configuration that names the held-out photographs.
        half: The half of these photographs: choose settings with it, or report results on it; None: all.
        photographs: Use only that many of these photographs, from the first on; 0: all.
        output: Folder to write to.
        crops: Crops of each photograph.
        size: Side of the crops, in pixels.
        quick: Measure only bicubic, the first stage alone, the model, and the model without its first stage.
        steps: Numbers of sampling steps that are run, to compare with the model's own.
        guidance_scales: Guidance scales to compare with the model's own.
    """

    photos: tuple[Path, ...]
    model: Path = MODEL
    first_stage: str = "own"
    config: str = CONFIG
    half: Half | None = None
    photographs: int = 0
    output: Path = Path("outputs/tiny_quality")
    crops: int = 2
    size: int = 512
    quick: bool = False
    steps: tuple[int, ...] = (1, 2, 4)
    guidance_scales: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Row:
    """How a row of the table is made: settings, captions, and whether the first stage is used."""

    sampling: Sampling
    captions: Sequence[Caption]
    first_stage: bool = True


@dataclass(frozen=True)
class Results:
    """The results of the rows, by name: an image for each crop, and the seconds for one image."""

    images: dict[str, list[RgbImage]]
    seconds: dict[str, float]


def run(arguments: Arguments) -> None:
    begin = time.perf_counter()
    use_compilation_cache()
    check_writable(arguments.output)
    names = held_out(load_config(arguments.config).images.exclude, *arguments.photos)
    if arguments.half:
        names = halves(names)[arguments.half]
    crops = cut_crops(
        arguments.photos, names[: arguments.photographs or None], count=arguments.crops, size=arguments.size
    )
    model = with_fast_convolutions(xpsr_jax.load(arguments.model, first_stage=arguments.first_stage))
    results = restore_rows(
        model,
        crops,
        {
            name: row
            for name, row in rows(
                model.defaults,
                [crop.caption for crop in crops],
                first_stage=model.first_stage is not None,
                steps=arguments.steps,
                guidance_scales=arguments.guidance_scales,
            ).items()
            if name in _QUICK or not arguments.quick
        },
    )
    if not arguments.quick:
        results.images[AUTOENCODER], results.seconds[AUTOENCODER] = reconstruct(model.autoencoder, crops)
    write_pictures(arguments.output, crops, results.images)

    scores = measure_crops(crops, results.images, metrics=JUDGES)
    if arguments.size >= 2 * BLOCK:
        for method, images in results.images.items():
            scores[method][NIQE] = [niqe(image) for image in images]
    sampling = model.defaults
    heading = (
        f"{len(crops)} crops of {len({crop.name for crop in crops})} photographs"
        f"{f' (the half to {arguments.half})' if arguments.half else ''}, full degradation, {arguments.size // 4} → "
        f"{arguments.size}, seed {CROP_SEED}; {sampling.steps} steps, guidance {sampling.guidance_scale} "
        f"({sampling.guidance_form}). Reference: the plain crop, not sharpened. Mean ± standard error over photographs."
    )
    photographs = [crop.name for crop in crops]
    text = f"{heading}\n\n{markdown(scores, photographs, results.seconds)}"
    if FIRST_STAGE in scores:
        text += f"\nDifference from {FIRST_STAGE}, paired by photograph:\n\n{differences(scores, photographs)}"
    record = {
        "about": heading,
        "sampling": dataclasses.asdict(sampling),
        "crops": [{"image": crop.name, **dataclasses.asdict(crop.caption)} for crop in crops],
        "seconds": results.seconds,
        "scores": scores,
    }
    for name, content in (
        ("results.md", text),
        ("results.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n"),
    ):
        with new_file(arguments.output / name) as file:
            file.write_text(content, encoding="utf-8")
    print(f"\n{text}\n{time.perf_counter() - begin:.0f} s; written to {arguments.output}")


def rows(
    sampling: Sampling,
    captions: Sequence[Caption],
    *,
    first_stage: bool,
    steps: Sequence[int] = (),
    guidance_scales: Sequence[float] = (),
) -> dict[str, Row]:
    """The rows of the table that a model restores. Each row changes one thing (paper, Tables 2 and 5).

    Args:
        sampling: the model's own settings.
        captions: captions of the crops.
        first_stage: whether the model has a first stage.
        steps, guidance_scales: values to compare with the model's own. `steps` are those that are run, which at a
            strength below 1 are the last ones.
    """
    own = Row(sampling, list(captions))
    found = {OURS: own}
    if first_stage:
        found[WITHOUT] = dataclasses.replace(own, first_stage=False)
    empty = {
        "without captions": [Caption() for _ in captions],
        "without high-level captions": [Caption("", caption.low) for caption in captions],
        "without low-level captions": [Caption(caption.high, "") for caption in captions],
    }
    found |= {name: dataclasses.replace(own, captions=texts) for name, texts in empty.items()}

    def change(name: str, **settings: Any) -> None:
        found[name] = dataclasses.replace(own, sampling=dataclasses.replace(sampling, **settings))

    guided = [scale for scale in (sampling.guidance_scale, *guidance_scales) if scale]
    if guided:
        change(_guidance(guided[0], "without negative prompt"), guidance_scale=guided[0], negative_high="")
    for scale in guidance_scales:
        if scale != sampling.guidance_scale:
            change(_guidance(scale), guidance_scale=scale)
    for count in steps:
        whole = steps_for(count, sampling.strength)
        if whole != sampling.steps:
            change("1 step" if count == 1 else f"{count} steps", steps=whole)
    return found


def _guidance(scale: float, more: str = "") -> str:
    return f"guidance {scale:g}" + (f", {more}" if more else "")


def restore_rows(model: Model, crops: Sequence[Crop], wanted: Mapping[str, Row]) -> Results:
    """Enlarges the crops (bicubic), runs the first stage if there is one, and restores all rows from its results."""
    images = {BICUBIC: [enlarge(crop.lr, crop.original.shape) for crop in crops]}
    seconds = {BICUBIC: 0.0}
    clean: list[RgbImage] | None = None
    if model.first_stage is not None:
        alone = Row(dataclasses.replace(model.defaults, steps=0), [Caption() for _ in crops])
        clean, seconds[FIRST_STAGE] = _restore(model, crops, alone, None, label=FIRST_STAGE)
        images[FIRST_STAGE] = clean
    for name, row in wanted.items():
        if row.first_stage:
            images[name], seconds[name] = _restore(model, crops, row, clean, label=name)
            seconds[name] += seconds.get(FIRST_STAGE, 0.0)
        else:
            plain = dataclasses.replace(model, first_stage=None)
            images[name], seconds[name] = _restore(plain, crops, row, None, label=name)
    return Results(images, seconds)


def _restore(
    model: Model, crops: Sequence[Crop], row: Row, clean: Sequence[RgbImage] | None, *, label: str
) -> tuple[list[RgbImage], float]:
    """Restores each crop for a row. Also returns the median seconds per image, without the first, which compiles."""
    restorer = Restorer(model, row.sampling)
    images, times = [], []
    for i, crop in enumerate(tqdm(crops, desc=label, disable=None)):
        begin = time.perf_counter()
        (image,) = restorer([crop.lr], [row.captions[i]], clean=None if clean is None else [clean[i]])
        times.append(time.perf_counter() - begin)
        if image is None:
            raise UserError(not_finite(f"{crop.name} ({label})"))
        images.append(image)
    return images, float(np.median(times[1:] or times))


def restore_all(
    model: Model, crops: Sequence[Crop], captions: Sequence[Caption], sampling: Sampling, *, label: str
) -> list[RgbImage]:
    """Restores all crops with these captions and settings."""
    pairs = tqdm(zip(crops, captions, strict=True), total=len(crops), desc=label, disable=None)
    return [restore(model, [crop.lr], [caption], sampling, names=[crop.name])[0] for crop, caption in pairs]


def reconstruct(autoencoder: Autoencoder, crops: Sequence[Crop]) -> tuple[list[RgbImage], float]:
    """Encodes and decodes the originals with an autoencoder. Also returns the median seconds for decoding one."""
    encode, decode = jax.jit(autoencoder.encode), jax.jit(autoencoder.decode)
    images, times = [], []
    for crop in tqdm(crops, desc=AUTOENCODER, disable=None):
        latents = jax.block_until_ready(encode(crop.original[None].astype(np.float32) / 127.5 - 1))
        begin = time.perf_counter()
        decoded = np.asarray(decode(latents))[0]
        times.append(time.perf_counter() - begin)
        images.append(np.round(np.clip(decoded / 2 + 0.5, 0, 1) * 255).astype(np.uint8))
    return images, float(np.median(times[1:] or times))


def by_photograph(values: Sequence[float], photographs: Sequence[str]) -> np.ndarray:
    """The mean over each photograph's crops, because they are similar. Photographs are in order of first appearance."""
    of = {name: [value for value, own in zip(values, photographs, strict=True) if own == name] for name in photographs}
    return np.array([np.mean(each) for each in of.values()])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error (NaN for a single value)."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def markdown(scores: CropScores, photographs: Sequence[str], seconds: Mapping[str, float] | None = None) -> str:
    """The table: mean ± standard error, and the difference (PSNR) or ratio (other metrics) to bicubic.

    Args:
        scores: the scores.
        photographs: the photograph of each crop.
        seconds: an additional column.
    """
    metrics = list(next(iter(scores.values())))
    heads = [f"{metric} ({_BETTER[metric]} is better)" for metric in metrics] + (["seconds"] if seconds else [])
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for method, of_method in scores.items():
        cells = []
        for metric, values in of_method.items():
            digits = 2 if metric == "PSNR-Y" else 4
            mean, error = mean_and_error(by_photograph(values, photographs))
            base, _ = mean_and_error(by_photograph(scores[BICUBIC][metric], photographs))
            against = f"{mean - base:+.2f} dB" if metric == "PSNR-Y" else f"{mean / base:.3f} ×"
            cells.append(f"{mean:.{digits}f} ± {error:.{digits}f}" + (f" ({against})" if method != BICUBIC else ""))
        if seconds:
            cells.append(f"{seconds[method]:.1f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def differences(scores: CropScores, photographs: Sequence[str], reference: str = FIRST_STAGE) -> str:
    """Each row's difference from the reference: mean ± standard error over photographs, and the ratio of means."""
    metrics = list(scores[reference])
    lines = ["| | " + " | ".join(metrics) + " |", "|---|" + "---|" * len(metrics)]
    for method in scores:
        if method in (reference, AUTOENCODER):
            continue
        cells = []
        for metric in metrics:
            own, other = (by_photograph(scores[name][metric], photographs) for name in (method, reference))
            mean, error = mean_and_error(own - other)
            ratio = "" if metric == "PSNR-Y" else f" ({own.mean() / other.mean():.3f} ×)"
            cells.append(f"{mean:+.{2 if metric == 'PSNR-Y' else 4}f} ± {error:.4f}{ratio}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_pictures(folder: Path, crops: Sequence[Crop], results: Mapping[str, Sequence[RgbImage]]) -> None:
    """Writes one PNG for each photograph, with a row for each crop.

    A row shows the enlarged LR image, the first stage's result if there is one, the restored image, and the original.
    """
    shown = [results[name] for name in (BICUBIC, FIRST_STAGE, OURS) if name in results]
    for name in dict.fromkeys(crop.name for crop in crops):
        rows = [
            np.concatenate([*(images[i] for images in shown), crop.original], axis=1)
            for i, crop in enumerate(crops)
            if crop.name == name
        ]
        write_png(folder / f"{Path(name).stem}.png", np.concatenate(rows))


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
