"""Measures how well measured captions distinguish degradations, and how much they help the small model.

python -m benchmarks.captions --photos PHOTOS

First, crops of all photographs are degraded: once by the whole degradation (method §9), and once each by only the drawn
blur, only the noise and only the JPEG. Spearman's rank correlation tells whether `xpsr_jax.caption.measured` ranks the
degraded images in the order of the drawn strengths. Measures of scikit-image are shown for comparison (its measure of
noise needs PyWavelets).

Then the small model, without its first stage, restores crops of held-out photographs (those of
benchmarks/tiny_quality.py). It uses low-level captions from the drawn degradation, from measurements, and none.
Differences are paired, with 95% intervals from a bootstrap over the photographs and the crops of each.

--calibrate prints the table of edges for measured.py, from the photographs with which the small model was trained.
"""

import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from scipy.stats import spearmanr
from skimage.measure import blur_effect
from tqdm import tqdm

import xpsr_jax
from benchmarks.bootstrap import interval, interval_of_mean
from benchmarks.command_line import command_line
from benchmarks.tiny_quality import CONFIG, MODEL, restore_all
from xpsr_jax.caption import measured
from xpsr_jax.caption.measured import Quality, describe_quality, measure_quality
from xpsr_jax.config import load_config
from xpsr_jax.data.captions import Caption
from xpsr_jax.data.config import XPSR
from xpsr_jax.data.degradation import Drawn, apply, draw
from xpsr_jax.data.jpeg import quantisation_scale
from xpsr_jax.data.quality import (
    BLUR_LIMITS,
    COMPRESSION_LIMITS,
    NOISE_LIMITS,
    appearance,
    describe_appearance,
)
from xpsr_jax.data.rounding import round_to_uint8
from xpsr_jax.evaluation.crops import Crop, CropScores, RgbImage, cut_crops, enlarge, held_out, measure_crops
from xpsr_jax.files import check_writable, new_file
from xpsr_jax.images.listing import list_images
from xpsr_jax.images.reading import read_image
from xpsr_jax.inference.compilation import use_compilation_cache, with_fast_convolutions

SEED = 11
LIMITS = {"blur": BLUR_LIMITS, "noise": NOISE_LIMITS, "compression": COMPRESSION_LIMITS}
NONE, DRAWN, MEASURED, FIRST_SENTENCE = "none", "drawn", "measured", "measured, first sentence only"


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photos: Folder with the photographs and captions.jsonl.
        model: Model folder.
        config: The training configuration that names the held-out photographs.
        output: Folder to write to.
        degraded: Degraded crops of each photograph, for the correlations.
        crops: Crops of each held-out photograph, to restore.
        size: Side of these crops, in pixels.
        steps: Sampling steps.
        only: Run only one of the two parts.
        calibrate: Print the table of edges, and nothing else.
    """

    photos: Path
    model: Path = MODEL
    config: str = CONFIG
    output: Path = Path("outputs/captions")
    degraded: int = 5
    crops: int = 8
    size: int = 256
    steps: int = 4
    only: Literal["correlations", "quality"] | None = None
    calibrate: bool = False


@dataclass(frozen=True)
class Degraded:
    """An LR image, the index of its photograph, its drawn degradation and its measured quality."""

    lr: RgbImage
    photo: int
    drawn: Drawn
    quality: Quality


Measure = Callable[[Degraded], float]


def run(arguments: Arguments) -> None:
    if arguments.calibrate:
        calibrate(arguments)
        return
    use_compilation_cache()
    check_writable(arguments.output)
    parts: dict[str, Callable] = {"correlations": correlate, "quality": compare}
    for name in parts if arguments.only is None else (arguments.only,):
        text, numbers = parts[name](arguments)
        print(text)
        for suffix, content in ((".md", text), (".json", json.dumps(numbers, indent=1) + "\n")):
            with new_file(arguments.output / f"{name}{suffix}") as file:
                file.write_text(content, encoding="utf-8")


def correlate(arguments: Arguments) -> tuple[str, dict[str, float]]:
    """The tables of correlations and of grades, and all numbers."""
    crops = list(cut(arguments.photos, list_images(arguments.photos), arguments.degraded))
    begin = time.perf_counter()
    sets = {name: degrade(crops, keep) for name, keep in ALONE.items()}
    milliseconds = (time.perf_counter() - begin) * 1e3 / (len(crops) * len(sets))

    numbers: dict[str, float] = {}

    def row(name: str, of: str, drawn: Measure, seen: Measure, chosen: Callable[[Degraded], bool] | None = None) -> str:
        used = [each for each in sets[of] if chosen is None or chosen(each)]
        values = np.array([(drawn(each), seen(each)) for each in used])
        photos = np.array([each.photo for each in used])
        low, high = interval(values, photos, lambda rows: spearmanr(*rows.T)[0])
        numbers[name] = float(spearmanr(*values.T)[0])
        return f"| {name} | {len(values)} | {numbers[name]:.2f} | {low:.2f} to {high:.2f} |"

    rows = ["| drawn, and measured | crops | rank correlation | 95% interval |", "|---|---|---|---|"]
    for degradation, names in (("whole degradation", ("whole",) * 3), ("nothing else", ("blur", "noise", "JPEG"))):
        blur, noise, jpeg = names
        compression = last_scale, found("compression")
        rows.append(row(f"blur, {degradation}", blur, looks("blur"), found("blur")))
        rows.append(row(f"noise, {degradation}", noise, looks("noise"), found("noise")))
        if jpeg == "whole":
            rows.append(row(f"JPEG, {degradation}, as the last step", jpeg, *compression, jpeg_last))
            rows.append(row(f"JPEG, {degradation}, resized after it", jpeg, *compression, jpeg_first))
        else:
            rows.append(row(f"JPEG, {degradation}", jpeg, *compression))
    rows.append(row("blur, whole degradation, by blur_effect", "whole", looks("blur"), blur_by_skimage))
    if importlib.util.find_spec("pywt"):
        rows.append(row("noise, whole degradation, by estimate_sigma", "whole", looks("noise"), noise_by_skimage))

    grades = [
        "| whole degradation | same grade | at most one off | drawn, measured: none / slight / moderate / heavy |"
    ]
    grades.append("|---|---|---|---|")
    for what, limits in LIMITS.items():
        pairs = np.array([[grade(measure(e), limits) for measure in (looks(what), found(what))] for e in sets["whole"]])
        off = np.abs(pairs[:, 0] - pairs[:, 1])
        counts = ["/".join(str(count) for count in np.bincount(column, minlength=4)) for column in pairs.T]
        numbers |= {f"{what}, same grade": float((off == 0).mean()), f"{what}, one off": float((off <= 1).mean())}
        grades.append(f"| {what} | {(off == 0).mean():.0%} | {(off <= 1).mean():.0%} | {', '.join(counts)} |")
    heading = (
        f"{len(crops)} crops of {len(list_images(arguments.photos))} photographs, 512 → 128. Degrading and measuring "
        f"took {milliseconds:.0f} ms per crop."
    )
    return "\n\n".join((heading, "\n".join(rows), "\n".join(grades))) + "\n", numbers


def looks(what: str) -> Measure:
    """The value for the drawn degradation in the captions of training."""
    return lambda each: getattr(appearance(each.drawn), what)


def found(what: str) -> Measure:
    return lambda each: getattr(each.quality.appearance, what)


def last_scale(each: Degraded) -> float:
    quality = each.drawn.second.jpeg_quality
    return 0.0 if quality is None else quantisation_scale(quality)


def jpeg_last(each: Degraded) -> bool:
    return each.drawn.jpeg_last


def jpeg_first(each: Degraded) -> bool:
    return not each.drawn.jpeg_last


def cut(photos: Path, names: Sequence[str], count: int) -> list[tuple[RgbImage, tuple[int, int]]]:
    """Crops of 512 pixels at fixed positions, each with its own seed."""
    crops = []
    for i, name in enumerate(names):
        photo = read_image(photos / name)
        below, right = (max(0, 512 - side) for side in photo.shape[:2])
        photo = cv2.copyMakeBorder(photo, 0, below, 0, right, cv2.BORDER_REFLECT_101)
        for j in range(count):
            rng = np.random.default_rng((SEED, i, j))
            top, left = (int(rng.integers(side - 511)) for side in photo.shape[:2])
            crops.append((photo[top : top + 512, left : left + 512], (i, j)))
    return crops


def _only(drawn: Drawn, *kept: str) -> Drawn:
    """The drawn degradation with only these steps, and with only the last resize."""
    removed: dict[str, Any] = {step: None for step in ("blur", "noise", "jpeg_quality") if step not in kept}
    first, second = (replace(stage, scale=1.0, **removed) for stage in (drawn.first, drawn.second))
    if "blur" not in kept:
        drawn = replace(drawn, sinc=None, final_mode="area")
    return replace(drawn, first=first, second=second)


ALONE: dict[str, Callable[[Drawn], Drawn]] = {
    "whole": lambda drawn: drawn,
    "blur": lambda drawn: _only(drawn, "blur"),
    "noise": lambda drawn: _only(drawn, "noise"),
    "JPEG": lambda drawn: _only(drawn, "jpeg_quality"),
}


def degrade(crops: Sequence[tuple[RgbImage, tuple[int, int]]], keep: Callable[[Drawn], Drawn]) -> list[Degraded]:
    degraded = []
    for crop, seed in tqdm(crops, desc="degrading", disable=None):
        rng = np.random.default_rng((SEED + 1, *seed))
        drawn = keep(draw(XPSR, rng))
        lr = round_to_uint8(apply(crop.astype(np.float32) / 255, drawn, rng).lr)
        degraded.append(Degraded(lr, seed[0], drawn, measure_quality(lr)))
    return degraded


def blur_by_skimage(each: Degraded) -> float:
    # 3 is better here than the default 11.
    return float(blur_effect(cv2.cvtColor(each.lr, cv2.COLOR_RGB2GRAY) / 255, h_size=3))


def noise_by_skimage(each: Degraded) -> float:
    from skimage.restoration import estimate_sigma

    return float(estimate_sigma(each.lr.astype(float), channel_axis=-1, average_sigmas=True))


def grade(value: float, limits: Sequence[float]) -> int:
    return sum(value >= limit for limit in limits)


def compare(arguments: Arguments) -> tuple[str, CropScores]:
    """The table of the small model's quality, and all scores."""
    unseen = held_out(load_config(arguments.config).images.exclude, arguments.photos)
    crops = cut_crops(arguments.photos, unseen, count=arguments.crops, size=arguments.size)
    model = with_fast_convolutions(xpsr_jax.load(arguments.model, first_stage="none"))
    sampling = dataclasses.replace(model.defaults, steps=arguments.steps)
    results = {"bicubic": [enlarge(crop.lr, crop.original.shape) for crop in crops]}
    for name, words in WORDS.items():
        captions = [Caption(crop.caption.high, words(crop)) for crop in crops]
        results[name] = restore_all(model, crops, captions, sampling, label=name)
    scores = measure_crops(crops, results)
    metrics = ("LPIPS (alex)", "DISTS")
    lines = [
        f"{len(crops)} crops of {len({crop.name for crop in crops})} held-out photographs, {arguments.steps} steps. "
        "Lower is better. Below 0, the row is better than no low-level caption.",
        "",
        "| low-level caption | " + " | ".join(f"{metric} | against none, × 1000" for metric in metrics) + " |",
        "|---" * (1 + 2 * len(metrics)) + "|",
    ]
    for name, of_row in scores.items():
        cells = []
        for metric in metrics:
            against = between(scores, name, NONE, metric, arguments.crops) if name != NONE else ""
            cells.append(f"{np.mean(of_row[metric]):.4f} | {against}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    measured_drawn = (f"{metric} {between(scores, MEASURED, DRAWN, metric, arguments.crops)}" for metric in metrics)
    lines.append("\nMeasured against drawn, × 1000: " + "; ".join(measured_drawn))
    return "\n".join(lines) + "\n", scores


WORDS: dict[str, Callable[[Crop], str]] = {
    NONE: lambda crop: "",
    DRAWN: lambda crop: crop.caption.low,
    MEASURED: lambda crop: describe_quality(crop.lr),
    FIRST_SENTENCE: lambda crop: describe_appearance(measure_quality(crop.lr).appearance),
}


def between(scores: CropScores, name: str, other: str, metric: str, crops: int) -> str:
    """The mean difference between two rows and its interval, × 1000."""
    differences = 1e3 * (np.array(scores[name][metric]) - np.array(scores[other][metric]))
    low, high = interval_of_mean(differences.reshape(1, -1, crops))
    return f"{differences.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def calibrate(arguments: Arguments) -> None:
    unseen = load_config(arguments.config).images.exclude
    names = [name for name in list_images(arguments.photos) if name not in unseen]
    crops = [cv2.resize(crop, (128, 128), interpolation=cv2.INTER_AREA) for crop, _ in cut(arguments.photos, names, 5)]
    for sigma in measured._BLURS:
        blurred = [cv2.GaussianBlur(crop, (0, 0), sigma) if sigma else crop for crop in crops]
        print(f"{sigma}: {np.median([measured._steepness([crop]) for crop in blurred]):.3f}")


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
