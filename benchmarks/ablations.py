"""The paper's Tables 2 to 5 with the small model: the effect of each part of XPSR there.

python -m benchmarks.ablations --photos PHOTOS --trained runs/study

Tables 2 and 5 (captions, negative prompt) compare settings of the shipped model, without its first stage. Tables 3 and
4 (fusion, Degradation-Free Constraint) compare the trainings of benchmarks/ablation_trainings.py. All restore the same
degraded crops, with the same noise. The crops come from photographs that none of the models has seen.

Each row is compared with the first row of its table, crop by crop and seed by seed. The 95% intervals come from a
bootstrap that draws seeds, photographs, and crops of each photograph. The first row is XPSR's own choice. The last
column says where this choice is better or worse. A last table compares the directions of these differences with the
directions of the paper's own numbers, where these are legible.

Writes scores/ROW.json (one file for each row; later runs do not measure it again), ablations.md and ablations.png.
"""

import dataclasses
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import xpsr_jax
from benchmarks.beside_paper import Difference, beside_paper
from benchmarks.bootstrap import interval_of_mean
from benchmarks.command_line import command_line
from benchmarks.tiny_quality import CONFIG, MODEL, restore_all
from xpsr_jax.config import Sampling, load_config
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import METRICS, Crop, cut_crops, enlarge, held_out, measure_crops
from xpsr_jax.files import check_writable, new_file
from xpsr_jax.inference.compilation import use_compilation_cache, with_fast_convolutions
from xpsr_jax.inference.manifest import sha256

BICUBIC = "bicubic"
# For each metric: the factor for its differences in tables and plots, and its label in plots.
SHOWN = {
    "PSNR-Y": (1, "PSNR-Y, dB"),
    "SSIM-Y": (1e3, "SSIM-Y × 1000"),
    "LPIPS (alex)": (1e3, "LPIPS × 1000"),
    "DISTS": (1e3, "DISTS × 1000"),
}

Scores = dict[str, Float[np.ndarray, "photos crops"]]


def both(caption: Caption) -> Caption:
    return caption


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      name: its name in the table.
      variant: the trained variant of configs/ablations.py. None: the shipped model.
      captions: the part of a crop's captions that the model gets.
      sampling: settings that differ from the model's own.
    """

    name: str
    variant: str | None = None
    captions: Callable[[Caption], Caption] = both
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# The first row of each table is XPSR's choice.
TABLES: dict[str, tuple[Row, ...]] = {
    "Table 2: captions": (
        Row("both captions"),
        Row("high-level alone", captions=lambda caption: Caption(caption.high, "")),
        Row("low-level alone", captions=lambda caption: Caption("", caption.low)),
        Row("none", captions=lambda caption: Caption("", "")),
    ),
    "Table 3: fusion": (
        Row("Semantic-Fusion Attention", variant="default"),
        Row("in series", variant="serial"),
        Row("high-level stream alone", variant="high"),
        Row("low-level stream alone", variant="low"),
    ),
    "Table 4: Degradation-Free Constraint": (
        Row("pixels and latents", variant="default"),
        Row("pixels alone", variant="pixel"),
        Row("latents alone", variant="latent"),
        Row("no constraint", variant="unconstrained"),
    ),
    "Table 5: negative prompt": (
        Row("negative words, guidance 0.5", sampling={"guidance_scale": 0.5}),
        Row("empty words, guidance 0.5", sampling={"guidance_scale": 0.5, "negative_high": ""}),
        Row("no guidance"),
    ),
}


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photos: Folder with the photographs and captions.jsonl.
        trained: Output folder of benchmarks/ablation_trainings.py.
        seeds: Seeds of its trainings.
        config: The training configuration that names the held-out photographs.
        crops: Crops of each photograph.
        size: Side of a crop, in pixels.
        output: Folder to write to.
    """

    photos: Path
    trained: Path = Path("runs/study")
    seeds: tuple[int, ...] = (0, 1)
    config: str = CONFIG
    crops: int = 8
    size: int = 256
    output: Path = Path("outputs/ablations")


def run(arguments: Arguments) -> None:
    use_compilation_cache()
    check_writable(arguments.output / "scores")
    names = held_out(load_config(arguments.config).images.exclude, arguments.photos)
    crops = cut_crops(arguments.photos, names, count=arguments.crops, size=arguments.size)
    tables = {
        title: {row.name: [scores_of(arguments, row, seed, crops) for seed in seeds_of(arguments, row)] for row in rows}
        for title, rows in TABLES.items()
    }
    enlarged = [enlarge(crop.lr, crop.original.shape) for crop in crops]
    bicubic = stored(arguments, BICUBIC, crops, None, lambda: enlarged)
    study = {title: differences_shown(rows) for title, rows in tables.items()}
    text = "\n".join(markdown(title, rows, bicubic) for title, rows in tables.items())
    text += f"\n**Beside the paper's numbers**\n\n{beside_paper(study)}"
    with new_file(arguments.output / "ablations.md") as file:
        file.write_text(text, encoding="utf-8")
    plot(tables, arguments.output / "ablations.png")
    print(f"{text}\nwritten to {arguments.output}")


def seeds_of(arguments: Arguments, row: Row) -> Sequence[int | None]:
    return (None,) if row.variant is None else arguments.seeds


def scores_of(arguments: Arguments, row: Row, seed: int | None, crops: Sequence[Crop]) -> Scores:
    """The scores of one row: measured, or read from its file if they were measured before."""

    def restored() -> list[np.ndarray]:
        model = with_fast_convolutions(xpsr_jax.load(folder, first_stage="none"))
        sampling: Sampling = dataclasses.replace(model.defaults, **row.sampling)
        return restore_all(model, crops, captions, sampling, label=name)

    if row.variant is None:
        name, folder = row.name, MODEL
    else:
        name = f"{row.variant}-{seed}"
        folder = arguments.trained / name / "model"
    captions = [row.captions(crop.caption) for crop in crops]
    given = [hashes(folder), dict(row.sampling), [dataclasses.asdict(caption) for caption in captions]]
    return stored(arguments, name, crops, given, restored)


def stored(
    arguments: Arguments, name: str, crops: Sequence[Crop], given: Any, restored: Callable[[], list[np.ndarray]]
) -> Scores:
    """The scores of one row. If its file is missing, the result of `restored()` is measured and written to the file.

    Raises UserError if the file was made from other crops or another `given`.
    """
    file = arguments.output / "scores" / f"{name.replace(' ', '_')}.json"
    pixels = hashlib.sha256(b"".join(image.tobytes() for crop in crops for image in (crop.original, crop.lr)))
    made_of = {"crops": [crop.name for crop in crops], "pixels": pixels.hexdigest(), "of": given}
    if not file.exists():
        record = {"made_of": made_of, **measure_crops(crops, {name: restored()})[name]}
        with new_file(file) as new:
            new.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    record = json.loads(file.read_text(encoding="utf-8"))
    if record["made_of"] != made_of:
        raise UserError(
            f"{file} was made with other crops, captions, settings or weights: remove it, or name another --output"
        )
    return {metric: np.reshape(record[metric], (-1, arguments.crops)) for metric in METRICS}


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a model."""
    found = {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    if not found:
        raise UserError(f"{folder}: no such model; make it with: python -m benchmarks.ablation_trainings")
    return found


def differences(row: Sequence[Scores], first: Sequence[Scores], metric: str) -> Float[np.ndarray, "seeds photos crops"]:
    return np.stack([own[metric] - other[metric] for own, other in zip(row, first, strict=True)])


def differences_shown(rows: Mapping[str, Sequence[Scores]]) -> dict[str, dict[str, Difference]]:
    """Row -> metric -> how far it is from the first row, as tables show it."""
    (_, first), *others = rows.items()
    return {label: {metric: difference(row, first, metric) for metric in METRICS} for label, row in others}


def difference(row: Sequence[Scores], first: Sequence[Scores], metric: str) -> Difference:
    values, scale = differences(row, first, metric), SHOWN[metric][0]
    low, high = interval_of_mean(values)
    return Difference(scale * float(values.mean()), scale * low, scale * high)


def verdict(low: float, high: float, *, higher_is_better: bool) -> str:
    """The mark for a row's difference from XPSR's own choice: ✓ XPSR's choice is better, ✗ it is worse, = undecided."""
    if low <= 0 <= high:
        return "="
    return "✓" if (high < 0) == higher_is_better else "✗"


def markdown(title: str, rows: Mapping[str, Sequence[Scores]], bicubic: Scores) -> str:
    """A table: means of the first row and of bicubic enlargement, and differences of the other rows from the first."""
    (name, first), *others = rows.items()
    lines = [f"**{title}**\n", "| | " + " | ".join(f"{metric} ({METRICS[metric]} is better)" for metric in METRICS)]
    lines[-1] += " | XPSR's choice is better |"
    lines.append("|---" * (len(METRICS) + 2) + "|")
    for label, scores in (("bicubic", [bicubic]), (name, first)):
        means = [np.mean([own[metric] for own in scores]) for metric in METRICS]
        places = [2 if metric == "PSNR-Y" else 4 for metric in METRICS]
        cells = [f"{mean:.{place}f}" for mean, place in zip(means, places, strict=True)]
        lines.append(f"| {label} | " + " | ".join(cells) + " | |")
    for label, row in others:
        cells, verdicts = [], []
        for metric, better in METRICS.items():
            shown, digits = difference(row, first, metric), 2 if metric == "PSNR-Y" else 1
            of_seeds = SHOWN[metric][0] * differences(row, first, metric).mean((1, 2))
            cells.append(
                f"{shown.mean:+.{digits}f} ({shown.low:+.{digits}f} to {shown.high:+.{digits}f})"
                + (f" [{'; '.join(f'{mean:+.{digits}f}' for mean in of_seeds)}]" if len(row) > 1 else "")
            )
            verdicts.append(verdict(shown.low, shown.high, higher_is_better=better == "higher"))
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {' '.join(verdicts)} |")
    return "\n".join(lines) + "\n"


def plot(tables: Mapping[str, Mapping[str, Sequence[Scores]]], file: Path) -> None:
    """Plots the differences from each table's first row, with intervals. Each table is a row of panels, one per metric.

    Intervals that exclude 0 are blue, others are grey. Seeds are orange. If lower is better for a metric, its axis is
    reversed. So right of the line is always better than XPSR's choice.
    """
    figure = Figure(figsize=(15, 9), layout="constrained")
    panels = figure.subplots(len(tables), len(METRICS), squeeze=False, sharey="row")
    for (title, rows), of_table in zip(tables.items(), panels, strict=True):
        (name, first), *others = rows.items()
        for panel, metric in zip(of_table, METRICS, strict=True):
            for place, (_, row) in enumerate(others):
                draw(panel, place, differences(row, first, metric), SHOWN[metric][0])
            panel.axvline(0, color="grey", linewidth=1)
            panel.set_yticks(range(len(others)), labels=[label for label, _ in others])
            panel.set_ylim(len(others) - 0.5, -0.5)
        of_table[0].set_title(f"{title}\nagainst {name}", loc="left", fontsize="medium")
    for column, (metric, better) in zip(panels.T, METRICS.items(), strict=True):
        column[-1].set_xlabel(f"{SHOWN[metric][1]}; better →")
        if better == "lower":
            for panel in column:
                panel.invert_xaxis()
    with new_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def draw(panel: Axes, place: int, values: Float[np.ndarray, "seeds photos crops"], scale: float) -> None:
    low, high = (scale * edge for edge in interval_of_mean(values))
    significant = not low <= 0 <= high
    panel.plot([low, high], [place, place], color="C0" if significant else "C7", linewidth=2)
    panel.plot(scale * values.mean(), place, "o", color="C0" if significant else "C7")
    if len(values) > 1:
        for mean, offset in zip(values.mean((1, 2)), itertools.cycle((-0.18, 0.18))):
            panel.plot(scale * mean, place + offset, ".", color="C1")


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
