"""Compares the samplers: the quality that each reaches with a number of steps, and the time that it takes.

python benchmarks/samplers.py --photos PHOTOS [--model DIR]

The crops are those of benchmarks/tiny_quality.py, or, with --every, crops of a folder that training has not seen. All
settings except the sampler are the model's own (without a first stage), unless an option changes them. Several
intervals of guidance and several cache intervals are compared in all combinations. "cost" is the cost of the networks
at full size by XLA's count, in units of a whole guided step. "from whole" is the mean difference, in grey levels, from
the same sampler and number of steps with all steps whole and guided.

Programs are compiled first. Then every sampler restores a crop at every number of steps, before the next crop. So
anything that slows the machine down slows all of them. Writes samplers.csv (all numbers, crop by crop), samplers.md and
samplers.png into the output folder. If it is stopped, run the same command again to resume.
"""

import csv
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from tqdm import tqdm

import xpsr_jax
from benchmarks.bootstrap import interval_of_mean
from benchmarks.command_line import command_line
from benchmarks.tiny_quality import CONFIG, MODEL
from xpsr_jax.config import Sampling, load_config
from xpsr_jax.data.captions import read_captions
from xpsr_jax.diffusion.schedule import Spacing
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import CROP_SEED, Crop, cut_crops, enlarge, held_out, measure_crops
from xpsr_jax.files import check_writable, new_file
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.inference.plan import Run, plan_runs
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
SECONDS, COST, FROM_WHOLE = "seconds", "cost", "from whole"
WHOLE_GUIDANCE = (0.0, 1.0)
# The cost of a step at full size, in units of a whole guided step. The keys are: whether the step is guided, and the
# number of layers that it computes again (0: the step is whole). Costs of guided steps are XLA's counts
# (docs/reference/sampling.md). A step without guidance counts half. If it is whole, half of what both halves share is
# added (docs/understand/speed.md).
COSTS = {
    True: {0: 1.0, 1: 0.048, 2: 0.114, 3: 0.195},
    False: {0: 0.52, 1: 0.024, 2: 0.057, 3: 0.098},
}
# A line of samplers.csv, and means by method and column.
Row = dict[str, str]
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photos: Folder with the photographs and captions.jsonl.
        model: Model folder.
        config: The training configuration that names the held-out photographs.
        output: Folder to write to.
        every: N: use every N-th photograph of captions.jsonl instead of the held-out ones. Training must not have seen
            them.
        first: With `every`, the number of the first of them, from 0. Choose settings with one set, report with another.
        photographs: The most photographs to use; none: all.
        crops: Crops of each photograph.
        size: Side of a crop, in pixels.
        samplers: Samplers to compare.
        steps: Numbers of steps to compare.
        spacing: Spacings to compare; none: the model's own.
        guidance_scale: Guidance scale instead of the model's own.
        guidance_interval: Intervals of guidance to compare, as shares of the steps, such as "0.2:0.8".
        cache_interval: Cache intervals to compare: every N-th step is whole.
        cache_levels: Numbers of layers that the steps between whole steps compute again; none: the most.
        only: Rows of the table to measure; none: all.
        against: A row of the table. A second table shows the differences of all other rows from it, with 95% intervals.
    """

    photos: Path
    model: Path = MODEL
    config: str = CONFIG
    output: Path = Path("outputs/samplers")
    every: int | None = None
    first: int = 0
    photographs: int | None = None
    crops: int = 1
    size: int = 512
    samplers: tuple[str, ...] = tuple(SAMPLERS)
    steps: tuple[int, ...] = (5, 10, 20, 50)
    spacing: tuple[Spacing, ...] = ()
    guidance_scale: float | None = None
    guidance_interval: tuple[str, ...] = ("0:1",)
    cache_interval: tuple[int, ...] = (1,)
    cache_levels: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    against: str | None = None


def run(arguments: Arguments) -> None:
    use_compilation_cache()
    check_writable(arguments.output)
    unseen: Sequence[str]
    if arguments.every:
        unseen = sorted(read_captions(arguments.photos / "captions.jsonl"))[arguments.first :: arguments.every]
    else:
        unseen = held_out(load_config(arguments.config).images.exclude, arguments.photos)
    crops = cut_crops(arguments.photos, unseen[: arguments.photographs], count=arguments.crops, size=arguments.size)
    model = xpsr_jax.load(arguments.model, first_stage="none")
    defaults = model.defaults
    if arguments.guidance_scale is not None:
        defaults = dataclasses.replace(defaults, guidance_scale=arguments.guidance_scale)
    compared = with_savings(
        settings(defaults, arguments.samplers, arguments.steps, arguments.spacing),
        [read_interval(text) for text in arguments.guidance_interval],
        arguments.cache_interval,
        arguments.cache_levels,
    )
    if arguments.only:
        compared = {name: sampling for name, sampling in compared.items() if name in arguments.only}
    if arguments.against not in (None, *compared):
        raise UserError(f'--against "{arguments.against}" is not a row of the table; rows are {"; ".join(compared)}')
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
        f"{len(crops)} crops of {photographs} photographs, full degradation, {arguments.size // 4} → {arguments.size}, "
        f"seed {CROP_SEED}; "
        f"guidance {defaults.guidance_scale} ({defaults.guidance_form}), start {defaults.start}. Means over the crops."
    )
    table = f"{heading}\n\n{markdown(scores)}"
    if arguments.against:
        table += f"\n{differences(rows, arguments.against)}"
    with new_file(arguments.output / "samplers.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    print(f"\n{table}\nwritten to {arguments.output}")
    plot(scores, arguments.output / "samplers.png")


def settings(
    defaults: Sampling, samplers: Sequence[str], steps: Sequence[int], spacings: Sequence[Spacing]
) -> dict[str, Sampling]:
    """The settings to compare, by their names in the table, such as "UniPC, 10 steps"."""
    if unknown := set(samplers) - SAMPLERS.keys():
        raise UserError(f"unknown sampler {', '.join(sorted(unknown))}; samplers are {', '.join(SAMPLERS)}")
    plain = dataclasses.replace(defaults, eta=0.0, karras=False)
    return {
        f"{sampler}{f' {spacing}' if spacing else ''}, {count} steps": dataclasses.replace(
            plain, **SAMPLERS[sampler], steps=count, spacing=spacing or plain.spacing
        )
        for sampler in samplers
        for spacing in spacings or (None,)
        for count in steps
    }


def with_savings(
    compared: Mapping[str, Sampling],
    guidance_intervals: Sequence[tuple[float, float]],
    cache_intervals: Sequence[int],
    cache_levels: Sequence[int],
) -> dict[str, Sampling]:
    """All settings, combined with every guidance interval and every way to cache features, by name in the table."""
    found = {}
    for name, sampling in compared.items():
        for guidance in guidance_intervals:
            for cache in cache_intervals:
                for levels in (cache_levels or (None,)) if cache > 1 else (None,):
                    sampler, _, steps = name.rpartition(", ")
                    parts = [
                        sampler,
                        f"guidance {guidance[0]:g} to {guidance[1]:g}" if guidance != WHOLE_GUIDANCE else "",
                        f"1 of {cache} whole" if cache > 1 else "",
                        f"{levels} layers" if levels else "",
                        steps,
                    ]
                    found[", ".join(filter(None, parts))] = dataclasses.replace(
                        sampling, guidance_interval=guidance, cache_interval=cache, cache_levels=levels
                    )
    return found


def read_interval(text: str) -> tuple[float, float]:
    """Parses "0.2:0.8" to two numbers. Raises UserError."""
    try:
        begin, end = map(float, text.split(":"))
    except ValueError:
        raise UserError(f'a guidance interval must be written as 0.2:0.8, not as "{text}"') from None
    return begin, end


def cost(sampling: Sampling) -> float:
    """The cost of all steps at full size, in units of a whole guided step."""

    def of(run: Run) -> float:
        layers = (sampling.cache_levels or max(COSTS[True])) if run.features == "used" else 0
        return (run.last - run.first) * COSTS[run.guided][layers]

    return sum(map(of, plan_runs(sampling, at_most=sampling.steps)))


def compile_programs(model: Model, crop: Crop, compared: Mapping[str, Sampling]) -> None:
    """Compiles the programs. One program serves any number of steps."""
    for sampling in tqdm({dataclasses.replace(each, steps=1) for each in compared.values()}, "compiling", disable=None):
        Restorer(model, sampling)([crop.lr], [crop.caption])


def measure_crop(index: int, crop: Crop, restorers: Mapping[str, Restorer]) -> list[Row]:
    """Restores a crop with every sampler and number of steps, one after the other, and measures the results."""
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
    settings_of = {name: restorer.sampling for name, restorer in restorers.items()}

    def from_whole(name: str) -> str:
        if name not in settings_of:
            return ""
        plain = dataclasses.replace(
            settings_of[name], cache_interval=1, cache_levels=None, guidance_interval=WHOLE_GUIDANCE
        )
        whole = [other for other, sampling in settings_of.items() if sampling == plain and other != name]
        return repr(float(np.abs(np.int32(results[name]) - results[whole[0]]).mean())) if whole else ""

    return [
        {"crop": str(index), "image": crop.name, "method": name}
        | {metric: repr(values[0]) for metric, values in scores[name].items()}
        | {SECONDS: repr(seconds[name]) if name in seconds else ""}
        | {COST: repr(cost(settings_of[name])) if name in settings_of else "", FROM_WHOLE: from_whole(name)}
        for name in results
    ]


def read_rows(file: Path, methods: Sequence[str]) -> list[Row]:
    """Reads the rows of an earlier run. Raises UserError if that run compared other methods."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    if {row["method"] for row in rows} != set(methods):
        raise UserError(f"{file} has other samplers or steps: name another --output, or remove it")
    return rows


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """Writes a line for each crop and method."""
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def means(rows: Sequence[Row]) -> Scores:
    """The mean of every numeric column, by method."""
    scores: Scores = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        columns = [name for name in own[0] if name not in ("crop", "image", "method") and own[0][name]]
        scores[method] = {name: sum(float(row[name]) for row in own) / len(own) for name in columns}
    return scores


def markdown(scores: Scores) -> str:
    """The table of means."""
    columns = (*SHOWN, SECONDS, COST, FROM_WHOLE)
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, metrics in scores.items():
        cells = [
            f"{metrics[column]:.{4 if column in SHOWN[:2] else 2}f}" if column in metrics else "" for column in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences(rows: Sequence[Row], against: str) -> str:
    """The second table: the paired differences of all rows from one row, with 95% intervals by photograph."""
    lines = ["| difference from " + against + " | LPIPS (alex), % | DISTS, % |", "|---|---|---|"]
    for name in dict.fromkeys(row["method"] for row in rows):
        if name in (against, BICUBIC):
            continue
        cells = []
        for metric in SHOWN[:2]:
            other, own = (by_photograph(rows, method, metric) for method in (against, name))
            low, high = interval_of_mean(100 * (own - other)[None] / other.mean())
            cells.append(f"{100 * (own.mean() / other.mean() - 1):+.1f} ({low:+.1f} to {high:+.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_photograph(rows: Sequence[Row], method: str, metric: str) -> Float[np.ndarray, "photographs crops"]:
    """The values of a metric for every crop of a method."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] == method:
            values.setdefault(row["image"], []).append(float(row[metric]))
    return np.array(list(values.values()))


def plot(scores: Scores, file: Path) -> None:
    """Plots LPIPS, DISTS and seconds over the number of steps, with a line for each sampler."""
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
