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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import xpsr_jax
from benchmarks.command_line import command_line
from xpsr_jax.config import Sampling, load_config
from xpsr_jax.data.captions import Caption
from xpsr_jax.evaluation.crops import CROP_SEED, METRICS, Crop, CropScores, RgbImage, cut_crops, enlarge, measure_crops
from xpsr_jax.files import check_writable, new_file
from xpsr_jax.images.writing import write_png
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.inference.restore import restore
from xpsr_jax.weights.model_folder import Model

ROOT = Path(__file__).parents[1]
# The small model, and the configuration that says which photographs it never saw.
MODEL, CONFIG = ROOT / "xpsr_jax" / "assets" / "tiny", str(ROOT / "configs" / "tiny.py")
BICUBIC, OURS = "bicubic", "ours"


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photos: Folder with the photographs and captions.jsonl.
        model: Model folder.
        config: The training configuration that names the photographs it held out.
        output: Folder to write to.
        crops: Crops of each photograph.
        quick: Leave out the rows without captions and without the negative prompt.
        steps: Sampling steps instead of the model's own.
        guidance_scale: Guidance scale instead of the model's own.
    """

    photos: Path
    model: Path = MODEL
    config: str = CONFIG
    output: Path = Path("outputs/tiny_quality")
    crops: int = 3
    quick: bool = False
    steps: int | None = None
    guidance_scale: float | None = None


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

    results: dict[str, list[RgbImage]] = {BICUBIC: [enlarge(crop.lr, crop.original.shape) for crop in crops]}
    for name, (settings, captions) in variants(sampling, [crop.caption for crop in crops]).items():
        if name == OURS or not arguments.quick:
            results[name] = restore_all(model, crops, captions, settings, label=name)
    write_pictures(arguments.output, crops, results)

    scores = measure_crops(crops, results)
    heading = (
        f"{len(crops)} crops of {len({crop.name for crop in crops})} photographs, full degradation, 128 → 512, "
        f"seed {CROP_SEED}; {sampling.steps} steps, guidance {sampling.guidance_scale} ({sampling.guidance_form}). "
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
) -> list[RgbImage]:
    pairs = tqdm(zip(crops, captions, strict=True), total=len(crops), desc=label, disable=None)
    return [restore(model, [crop.lr], [caption], sampling, names=[crop.name])[0] for crop, caption in pairs]


def markdown(scores: CropScores) -> str:
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


def write_pictures(folder: Path, crops: Sequence[Crop], results: Mapping[str, Sequence[RgbImage]]) -> None:
    """One PNG a photograph; a row a crop: the LR image enlarged, restored, original."""
    for name in dict.fromkeys(crop.name for crop in crops):
        rows = [
            np.concatenate([results[BICUBIC][i], results[OURS][i], crop.original], axis=1)
            for i, crop in enumerate(crops)
            if crop.name == name
        ]
        write_png(folder / f"{Path(name).stem}.png", np.concatenate(rows))


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
