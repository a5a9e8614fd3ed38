"""Compares the samplers: how near to the original each comes in so many steps, and how long it takes.

python benchmarks/samplers.py --photos PHOTOS [--model DIR]

The crops are those of benchmarks/tiny_quality.py. Everything but the sampler is the model's own setting. Programs are
compiled beforehand; then every sampler restores a crop at every number of steps before the next crop's turn, so that
whatever slows the machine down meanwhile slows all of them. Writes samplers.md, samplers.csv (every single number) and
samplers.png into the output folder.
"""

import csv
import dataclasses
import io
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

import xpsr_jax
from xpsr_jax.config import Sampling, load_config
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import SEED, Crop, Image, Scores, cut_crops, enlarge, measure
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.inference.image_io import check_writable
from xpsr_jax.inference.restore import Restorer, not_a_number
from xpsr_jax.weights.atomic import new_file
from xpsr_jax.weights.model_folder import Model

ROOT = Path(__file__).parents[1]
SAMPLERS: dict[str, dict[str, Any]] = {
    "DDPM": {"sampler": "ddpm"},
    "DDIM": {"sampler": "ddim"},
    "DPM-Solver++": {"sampler": "dpm_solver"},
    "DPM-Solver++ Karras": {"sampler": "dpm_solver", "karras": True},
    "UniPC": {"sampler": "unipc"},
    "UniPC Karras": {"sampler": "unipc", "karras": True},
    "Euler": {"sampler": "euler"},
    "Euler Karras": {"sampler": "euler", "karras": True},
    "Euler ancestral": {"sampler": "euler_ancestral"},
}
BICUBIC = "bicubic"
SHOWN = ("LPIPS (alex)", "DISTS", "PSNR-Y")
SECONDS = "seconds"


@dataclass(frozen=True)
class Arguments:
    photos: Path
    """Folder with the photographs and captions.jsonl."""
    model: Path = ROOT / "xpsr_jax" / "assets" / "tiny"
    """Model folder."""
    config: str = str(ROOT / "configs" / "tiny.py")
    """The training configuration that names the photographs it held out."""
    output: Path = Path("outputs/samplers")
    """Folder to write to."""
    photographs: int | None = None
    """How many of the photographs; none: all."""
    crops: int = 1
    """Crops of each photograph."""
    samplers: tuple[str, ...] = tuple(SAMPLERS)
    """Which of them."""
    steps: tuple[int, ...] = (5, 10, 20, 50)
    """Numbers of steps."""
    spacing: tuple[str, ...] = ()
    """Spacings to compare; none: the model's own."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        run(arguments)
    except UserError as error:
        print(f"samplers.py: {error}", file=sys.stderr)
        return 1
    return 0


def run(arguments: Arguments) -> None:
    use_compilation_cache()
    check_writable(arguments.output)
    held_out = load_config(arguments.config).images.exclude[: arguments.photographs]
    crops = cut_crops(arguments.photos, held_out, count=arguments.crops)
    model = xpsr_jax.load(arguments.model)
    compared = settings(model.defaults, arguments.samplers, arguments.steps, arguments.spacing)
    results, seconds = restore_side_by_side(model, crops, compared)
    scores = measure(crops, {BICUBIC: [enlarge(crop.lr, crop.original.shape) for crop in crops]} | results)
    for name, times in seconds.items():
        scores[name][SECONDS] = times
    defaults = model.defaults
    photographs = len({crop.name for crop in crops})
    heading = (
        f"{len(crops)} crops of {photographs} photographs, full degradation, 128 → 512, seed {SEED}; "
        f"guidance {defaults.guidance_scale} ({defaults.guidance_form}), start {defaults.start}. Means over the crops."
    )
    table = f"{heading}\n\n{markdown(scores)}"
    for name, text in (("samplers.md", table), ("samplers.csv", as_csv(crops, scores))):
        with new_file(arguments.output / name) as file:
            file.write_text(text, encoding="utf-8")
    print(f"\n{table}\nwritten to {arguments.output}")
    plot(scores, arguments.output / "samplers.png")


def settings(
    defaults: Sampling, samplers: Sequence[str], steps: Sequence[int], spacings: Sequence[str]
) -> dict[str, Sampling]:
    """What is compared, by its name in the table: "UniPC, 10 steps"."""
    if unknown := set(samplers) - SAMPLERS.keys():
        raise UserError(f"no sampler {', '.join(sorted(unknown))}; there are {', '.join(SAMPLERS)}")
    plain = dataclasses.replace(defaults, eta=0.0, karras=False)
    return {
        f"{sampler}{f' {spacing}' if spacing else ''}, {count} steps": dataclasses.replace(
            plain, **SAMPLERS[sampler], steps=count, spacing=spacing or plain.spacing
        )
        for sampler in samplers
        for spacing in spacings or (None,)
        for count in steps
    }


def restore_side_by_side(
    model: Model, crops: Sequence[Crop], compared: Mapping[str, Sampling]
) -> tuple[dict[str, list[Image]], dict[str, list[float]]]:
    """Results and seconds of each of `compared` on each crop."""
    restorers = {name: Restorer(model, sampling) for name, sampling in compared.items()}
    # One program serves any number of steps.
    for sampling in tqdm({dataclasses.replace(each, steps=1) for each in compared.values()}, "compiling", disable=None):
        Restorer(model, sampling)([crops[0].lr], [crops[0].caption])
    results: dict[str, list[Image]] = {name: [] for name in compared}
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for crop in tqdm(crops, desc="restoring", disable=None):
        for name, restorer in restorers.items():
            begin = time.perf_counter()
            (restored,) = restorer([crop.lr], [crop.caption])
            seconds[name].append(time.perf_counter() - begin)
            if restored is None:
                raise UserError(not_a_number(f"{crop.name} ({name})"))
            results[name].append(restored)
    return results, seconds


def markdown(scores: Scores) -> str:
    """The table: means over the crops."""
    lines = [f"| | {' | '.join((*SHOWN, SECONDS))} |", "|---|" + "---|" * (len(SHOWN) + 1)]
    for name, metrics in scores.items():
        cells = [f"{np.mean(metrics[metric]):.{2 if metric == 'PSNR-Y' else 4}f}" for metric in SHOWN]
        cells.append(f"{np.mean(metrics[SECONDS]):.2f}" if SECONDS in metrics else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_csv(crops: Sequence[Crop], scores: Scores) -> str:
    """A line for each sampler, number of steps and crop."""
    text = io.StringIO()
    columns = [*scores[BICUBIC], SECONDS]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "image", *columns])
    for name, metrics in scores.items():
        for i, crop in enumerate(crops):
            writer.writerow([name, crop.name, *(metrics[column][i] if column in metrics else "" for column in columns)])
    return text.getvalue()


def plot(scores: Scores, file: Path) -> None:
    """LPIPS, DISTS and seconds over the number of steps, a line for each sampler."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise UserError("the plot needs matplotlib: pip install matplotlib") from error
    lines: dict[str, list[tuple[int, dict[str, list[float]]]]] = {}
    for name, metrics in scores.items():
        if name != BICUBIC:
            sampler, _, steps = name.rpartition(", ")
            lines.setdefault(sampler, []).append((int(steps.split()[0]), metrics))
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for panel, metric in zip(panels, ("LPIPS (alex)", "DISTS", SECONDS), strict=True):
        for sampler, points in lines.items():
            steps = [count for count, _ in points]
            panel.plot(steps, [np.mean(metrics[metric]) for _, metrics in points], marker="o", label=sampler)
        if metric in scores[BICUBIC]:
            panel.axhline(np.mean(scores[BICUBIC][metric]), color="grey", linestyle="--", label=BICUBIC)
        panel.set(xlabel="steps", xscale="log", title=metric)
        panel.set_xticks(steps, labels=map(str, steps), minor=False)
        panel.minorticks_off()
    panels[0].legend(fontsize="small")
    with new_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
