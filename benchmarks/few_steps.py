"""Compares students of few evaluations with their teacher, crop by crop, on photographs that none has seen.

python benchmarks/few_steps.py --photos PHOTOS --student MODEL [MODEL] [--teacher MODEL]

The photographs are those that configs/few_step.py holds out. The teacher's number of steps and guidance are chosen by
LPIPS + DISTS, with some photographs of one half, where the students are also measured with 1 evaluation. Teacher and
students are compared on the other half, with 1, 2 and 4 evaluations of each student. Crops of 256 x 256 pixels are
degraded by the whole degradation with fixed seeds. Differences are paired. 95% intervals come from a bootstrap over
photographs and the crops of each. Writes few_steps.md, and few_steps.json with all numbers.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import xpsr_jax
from benchmarks.bootstrap import interval_of_mean
from benchmarks.command_line import command_line
from benchmarks.tiny_quality import MODEL, ROOT, Row, restore_rows
from xpsr_jax.config import Sampling, load_config
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import Crop, CropScores, cut_crops, halves, held_out, measure_crops
from xpsr_jax.files import check_writable, new_file
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.weights.model_folder import Model

CHOOSING = 8
SHOWN = ("LPIPS (alex)", "DISTS")


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photos: Folders with the photographs, each with its captions.jsonl.
        student: Model folders of students.
        teacher: Model folder of the teacher.
        config: The training configuration that names the held-out photographs.
        output: Folder to write to.
        crops: Crops of each photograph for the comparison.
        size: Side of the crops, in pixels.
        steps: Numbers of steps to choose from, for the teacher.
        guidance: Guidance scales to choose from, for the teacher, in the form of its own setting.
        evaluations: Numbers of evaluations of the students.
    """

    photos: tuple[Path, ...]
    student: tuple[Path, ...]
    teacher: Path = MODEL
    config: str = str(ROOT / "configs" / "few_step.py:tiny")
    output: Path = Path("outputs/few_steps")
    crops: int = 2
    size: int = 256
    steps: tuple[int, ...] = (4, 10, 20, 50)
    guidance: tuple[float, ...] = (0.0, 0.5)
    evaluations: tuple[int, ...] = (1, 2, 4)


def run(arguments: Arguments) -> None:
    use_compilation_cache()
    check_writable(arguments.output)
    names = halves(held_out(load_config(arguments.config).images.exclude, *arguments.photos))
    teacher = xpsr_jax.load(arguments.teacher)
    students = {label(folder): xpsr_jax.load(folder) for folder in arguments.student}
    if len(students) < len(arguments.student):
        raise UserError("two students have the same name, that of their run or folder; rename one of them")
    choosing = cut_crops(arguments.photos, names["choose"][:CHOOSING], count=1, size=arguments.size)
    settings = {
        f"{steps} steps, guidance {scale:g}": dataclasses.replace(teacher.defaults, steps=steps, guidance_scale=scale)
        for steps in arguments.steps
        for scale in arguments.guidance
    }
    chosen_on = restored(teacher, choosing, settings)
    best = min(chosen_on, key=lambda name: sum(np.mean(chosen_on[name][metric]) for metric in SHOWN))
    for name, student in students.items():
        chosen_on |= restored(student, choosing, {f"{name}, 1": dataclasses.replace(student.defaults, steps=1)})
    first = f"To choose: {len(choosing)} crops. The teacher's best settings are {best}.\n\n"
    first += markdown(chosen_on, best, crops=1)
    print(first)

    crops = cut_crops(arguments.photos, names["report"], count=arguments.crops, size=arguments.size)
    scores = restored(teacher, crops, {"teacher": settings[best]})
    for name, student in students.items():
        few = {f"{name}, {n}": dataclasses.replace(student.defaults, steps=n) for n in arguments.evaluations}
        scores |= restored(student, crops, few)
    with new_file(arguments.output / "few_steps.json") as temporary:
        temporary.write_text(json.dumps({"chosen on": chosen_on, "best": best, "scores": scores}), encoding="utf-8")
    second = f"To report: {len(crops)} crops of {len({crop.name for crop in crops})} photographs.\n\n"
    second += markdown(scores, "teacher", crops=arguments.crops)
    for name in students:
        one, *more = (f"{name}, {n}" for n in arguments.evaluations)
        second += "\n" + markdown({each: scores[each] for each in (one, *more)}, one, crops=arguments.crops)
    with new_file(arguments.output / "few_steps.md") as temporary:
        temporary.write_text(f"{first}\n{second}", encoding="utf-8")
    print(second)


def label(folder: Path) -> str:
    """The name of a model in the tables. An exported model is named after its run."""
    return folder.resolve().parent.name if folder.name == "model" else folder.name


def restored(model: Model, crops: Sequence[Crop], settings: Mapping[str, Sampling]) -> CropScores:
    """Measures every metric of every setting of a model, on every crop."""
    captions = [crop.caption for crop in crops]
    images = restore_rows(model, crops, {name: Row(sampling, captions) for name, sampling in settings.items()}).images
    return measure_crops(crops, {name: images[name] for name in settings})


def markdown(scores: CropScores, reference: str, *, crops: int) -> str:
    """A table of means, and of each row's loss against the reference in % of its mean, with intervals."""
    rows = [f"| | {' | '.join(f'{name} | loss, %' for name in SHOWN)} |", f"|---|{'---|' * 2 * len(SHOWN)}"]
    for method, values in scores.items():
        cells = []
        for metric in SHOWN:
            own, other = np.array(values[metric]), np.array(scores[reference][metric])
            lost = 100 * (own - other) / other.mean()
            low, high = interval_of_mean(lost.reshape(1, -1, crops))
            cells += [
                f"{own.mean():.4f}",
                "" if method == reference else f"{lost.mean():+.1f} ({low:+.1f} to {high:+.1f})",
            ]
        rows.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
