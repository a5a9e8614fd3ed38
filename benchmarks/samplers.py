"""Compares the samplers: how near to the original each comes in so many steps, and how long it takes.

python benchmarks/samplers.py --photos PHOTOS [--model DIR]

The crops are those of benchmarks/tiny_quality.py. Everything but the sampler is the model's own setting. Programs are
compiled beforehand; then every sampler restores a crop at every number of steps before the next crop's turn, so that
whatever slows the machine down meanwhile slows all of them. Writes samplers.csv (every single number, crop by crop: the
same command goes on where it was stopped), samplers.md and samplers.png into the output folder.
"""

import csv
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

import xpsr_jax
from benchmarks.command_line import command_line
from benchmarks.tiny_quality import CONFIG, MODEL
from xpsr_jax.config import Sampling, load_config
from xpsr_jax.diffusion.schedule import Spacing
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import CROP_SEED, Crop, cut_crops, enlarge, measure_crops
from xpsr_jax.files import check_writable, new_file
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.inference.restore import Restorer, not_finite
from xpsr_jax.weights.model_folder import Model

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
# A line of samplers.csv, and means by method and column.
Row = dict[str, str]
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photos: Folder with the photographs and captions.jsonl.
        model: Model folder.
        config: The training configuration that names the photographs it held out.
        output: Folder to write to.
        photographs: How many of the photographs; none: all.
        crops: Crops of each photograph.
        samplers: Which of them.
        steps: Numbers of steps.
        spacing: Spacings to compare; none: the model's own.
    """

    photos: Path
    model: Path = MODEL
    config: str = CONFIG
    output: Path = Path("outputs/samplers")
    photographs: int | None = None
    crops: int = 1
    samplers: tuple[str, ...] = tuple(SAMPLERS)
    steps: tuple[int, ...] = (5, 10, 20, 50)
    spacing: tuple[Spacing, ...] = ()


def run(arguments: Arguments) -> None:
    use_compilation_cache()
    check_writable(arguments.output)
    held_out = load_config(arguments.config).images.exclude[: arguments.photographs]
    crops = cut_crops(arguments.photos, held_out, count=arguments.crops)
    model = xpsr_jax.load(arguments.model)
    defaults = model.defaults
    compared = settings(defaults, arguments.samplers, arguments.steps, arguments.spacing)
    restorers = {name: Restorer(model, sampling) for name, sampling in compared.items()}
    file = arguments.output / "samplers.csv"
    rows = read_rows(file, (BICUBIC, *compared))
    if len(rows) < len(crops) * (1 + len(compared)):
        compile_programs(model, crops[0], compared)
    for i, crop in enumerate(tqdm(crops, desc="crops", disable=None)):
        if not any(row["crop"] == str(i) for row in rows):
            rows += measure_crop(i, crop, restorers)
            with new_file(file) as temporary:
                write_rows(rows, temporary)
    scores = means(rows)
    photographs = len({crop.name for crop in crops})
    heading = (
        f"{len(crops)} crops of {photographs} photographs, full degradation, 128 → 512, seed {CROP_SEED}; "
        f"guidance {defaults.guidance_scale} ({defaults.guidance_form}), start {defaults.start}. Means over the crops."
    )
    table = f"{heading}\n\n{markdown(scores)}"
    with new_file(arguments.output / "samplers.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    print(f"\n{table}\nwritten to {arguments.output}")
    plot(scores, arguments.output / "samplers.png")


def settings(
    defaults: Sampling, samplers: Sequence[str], steps: Sequence[int], spacings: Sequence[Spacing]
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


def compile_programs(model: Model, crop: Crop, compared: Mapping[str, Sampling]) -> None:
    """One program serves any number of steps."""
    for sampling in tqdm({dataclasses.replace(each, steps=1) for each in compared.values()}, "compiling", disable=None):
        Restorer(model, sampling)([crop.lr], [crop.caption])


def measure_crop(index: int, crop: Crop, restorers: Mapping[str, Restorer]) -> list[Row]:
    """Restores a crop by every sampler at every number of steps, one right after the other, and compares."""
    results = {BICUBIC: enlarge(crop.lr, crop.original.shape)}
    seconds: dict[str, float] = {}
    for name, restorer in restorers.items():
        begin = time.perf_counter()
        (restored,) = restorer([crop.lr], [crop.caption])
        seconds[name] = time.perf_counter() - begin
        if restored is None:
            raise UserError(not_finite(f"{crop.name} ({name})"))
        results[name] = restored
    scores = measure_crops([crop], {name: [image] for name, image in results.items()})
    return [
        {"crop": str(index), "image": crop.name, "method": name}
        | {metric: repr(values[0]) for metric, values in scores[name].items()}
        | {SECONDS: repr(seconds[name]) if name in seconds else ""}
        for name in results
    ]


def read_rows(file: Path, methods: Sequence[str]) -> list[Row]:
    """What an earlier run measured. Raises UserError if it compared something else."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    if {row["method"] for row in rows} != set(methods):
        raise UserError(f"{file} is of other samplers or steps: name another --output, or remove it")
    return rows


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """A line for each crop and method."""
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def means(rows: Sequence[Row]) -> Scores:
    """The mean of every column of numbers, by method."""
    scores: Scores = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        columns = [name for name in own[0] if name not in ("crop", "image", "method") and own[0][name]]
        scores[method] = {name: sum(float(row[name]) for row in own) / len(own) for name in columns}
    return scores


def markdown(scores: Scores) -> str:
    """The table."""
    lines = [f"| | {' | '.join((*SHOWN, SECONDS))} |", "|---|" + "---|" * (len(SHOWN) + 1)]
    for name, metrics in scores.items():
        cells = [f"{metrics[metric]:.{2 if metric == 'PSNR-Y' else 4}f}" for metric in SHOWN]
        cells.append(f"{metrics[SECONDS]:.2f}" if SECONDS in metrics else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(scores: Scores, file: Path) -> None:
    """LPIPS, DISTS and seconds over the number of steps, a line for each sampler."""
    lines: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for name, metrics in scores.items():
        if name != BICUBIC:
            sampler, _, steps = name.rpartition(", ")
            lines.setdefault(sampler, []).append((int(steps.split()[0]), metrics))
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, metric in zip(panels, ("LPIPS (alex)", "DISTS", SECONDS), strict=True):
        for sampler, points in lines.items():
            ticks = [count for count, _ in points]
            panel.plot(ticks, [metrics[metric] for _, metrics in points], marker="o", label=sampler)
        if metric in scores[BICUBIC]:
            panel.axhline(scores[BICUBIC][metric], color="grey", linestyle="--", label=BICUBIC)
        panel.set(xlabel="steps", xscale="log", title=metric)
        panel.set_xticks(ticks, labels=map(str, ticks), minor=False)
        panel.minorticks_off()
    panels[0].legend(fontsize="small")
    with new_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
