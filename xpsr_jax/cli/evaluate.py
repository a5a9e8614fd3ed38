"""Measures restored images against their originals: python -m xpsr_jax.evaluate --restored DIR --reference DIR

Prints a table; --output writes a report (HTML, Markdown, JSON, manifest), --json the scores alone.
"""

import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from tqdm import tqdm

import xpsr_jax
from xpsr_jax.cli.run import command
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.backbones import SMALLEST_SIDE
from xpsr_jax.evaluation.html_report import html_report
from xpsr_jax.evaluation.matching import Comparison, match_images, name_methods, name_of_set, set_folders
from xpsr_jax.evaluation.perceptual import weight_files
from xpsr_jax.evaluation.protocols import METRIC_NAMES, NATIVE, PROTOCOLS, MetricName, Protocol
from xpsr_jax.evaluation.scoring import ImageReport, MethodScores, default_batch_size, score
from xpsr_jax.evaluation.tables import Evaluation, describe_protocol, markdown, print_scores
from xpsr_jax.evaluation.with_pyiqa import require_pyiqa
from xpsr_jax.files import check_writable, write_text
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.inference.manifest import sha256


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        restored: Folders of restored images, named as their originals; several are compared.
        reference: Folder of originals, or of a set that has them in HR, test_HR or gt and its inputs in LR, test_LR or
            lq.
        lr: Folder of inputs, to be seen in the report (default: that of the set).
        protocol: Whose way of measuring: which MANIQA, which border, which channels.
        metrics: Which (default: those of the protocol that need no PyTorch; all: the protocol's).
        set_name: Which of the paper's sets it is, for the reports' headings (default: by the folder's name).
        beside: JSON with scores from elsewhere to stand beside, such as the paper's Table 1: {"SeeSR": {"psnr": 28.1,
            ...}}.
        output: Folder for report.html, report.md, scores of each method as JSON, and manifest.json.
        json: The scores alone: {"mean": {...}, "images": {name: {...}}}; of several folders a file each,
            FILE-NAME.json.
        batch_size: Images at a time (default: by the devices).
        on_error: What to do about an image that cannot be read. skip: its original is left out for all methods and
            reported, and the exit code is 1.
    """

    restored: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR...")]
    reference: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    lr: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    protocol: Literal["xpsr", "seesr"] = "xpsr"
    metrics: tuple[MetricName | Literal["all"], ...] = ()
    set_name: Annotated[Literal["DIV2K-Val", "RealSR", "DRealSR", "none"] | None, tyro.conf.arg(name="set")] = None
    beside: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    batch_size: int | None = None
    on_error: Literal["stop", "skip"] = "stop"


@command(
    "evaluate",
    interrupted="evaluate: interrupted",
    lower="lower --batch-size, or leave out --metrics that need large networks",
)
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 if anything went wrong, 130 if interrupted."""
    return evaluate(tyro.cli(Arguments, args=argv, description=__doc__, prog="python -m xpsr_jax.evaluate"))


def evaluate(arguments: Arguments) -> int:
    """Measures, prints and writes what was asked for; returns the exit code.

    Raises UserError before anything is measured, or written.
    """
    protocol = PROTOCOLS[arguments.protocol]
    metrics = choose_metrics(arguments.metrics, protocol)
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"--batch-size is at least 1, not {arguments.batch_size}")
    for folder in (arguments.output, arguments.json and arguments.json.parent):
        if folder is not None:
            check_writable(folder)
    others = read_others(arguments.beside) if arguments.beside else {}
    methods = name_methods(arguments.restored)
    reference, lr = set_folders(arguments.reference)
    report = ImageReport(arguments.on_error)
    comparisons = match_images(
        methods,
        reference,
        arguments.lr or lr,
        least_side=least_side(metrics, protocol),
        unreadable=report.failed if arguments.on_error == "skip" else None,
    )
    if "fid" in metrics and len(comparisons) < 2:
        raise UserError("FID takes at least two images; leave it out with --metrics")

    use_compilation_cache()
    with tqdm(total=len(comparisons), desc="measuring", unit="image", disable=None) as bar:
        scores = score(
            comparisons,
            list(methods),
            protocol,
            metrics,
            batch_size=arguments.batch_size or default_batch_size(),
            on_images=bar.update,
            report=report,
        )
    for reason in report.failed.values():
        print(f"evaluate: {reason}", file=sys.stderr)
    comparisons = [each for each in comparisons if each.name not in report.failed]
    if report.transparent:
        seen = "they were compared as they are seen on white"
        print(f"transparent in places: {report.transparent} of {len(comparisons)} images; {seen}")
    set_name = arguments.set_name or name_of_set(reference)
    result = Evaluation(scores, protocol, metrics, None if set_name == "none" else set_name, others)
    print_scores(result)
    if arguments.json is not None:
        write_scores(arguments.json, scores)
    if arguments.output is not None:
        write_report(arguments.output, result, comparisons, manifest_of(arguments, result, comparisons))
        print(f"report: {arguments.output / 'report.html'}")
    if report.failed:
        total = len(comparisons) + len(report.failed)
        print(f"{len(comparisons)} of {total} images measured; {len(report.failed)} skipped")
    return 1 if report.failed else 0


def choose_metrics(asked: Sequence[str], protocol: Protocol) -> tuple[MetricName, ...]:
    """In the protocol's order, others after. Raises UserError if pyiqa would be needed and is not there."""
    if not asked:
        return protocol.native_metrics
    wanted = set(asked) | (set(protocol.metrics) if "all" in asked else set())
    known = [*protocol.metrics, *(name for name in asked if name != "all" and name not in protocol.metrics)]
    metrics = tuple(dict.fromkeys(name for name in known if name in wanted))
    if not set(metrics) <= set(NATIVE):
        require_pyiqa()
    return metrics  # type: ignore[return-value]  # "all" is not among them


def read_others(file: Path) -> dict[str, dict[MetricName, float]]:
    """Scores by method and metric. Raises UserError if the file has anything else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        others = {str(method): {name: float(value) for name, value in row.items()} for method, row in data.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f'{file} is not JSON like {{"SeeSR": {{"psnr": 28.1, "ssim": 0.79}}}}: {error}') from error
    if unknown := sorted({name for row in others.values() for name in row} - set(METRIC_NAMES)):
        raise UserError(f"{file}: no metric {', '.join(unknown)}; there are {', '.join(METRIC_NAMES)}")
    return others


def least_side(metrics: Sequence[MetricName], protocol: Protocol) -> int:
    """The shortest side of an image that all metrics can take."""
    least = {"ssim": 11 + 2 * protocol.border, "psnr": 1 + 2 * protocol.border}
    least |= {"lpips": SMALLEST_SIDE["alexnet"], "lpips_vgg": SMALLEST_SIDE["vgg16"], "niqe": 96}
    return max(least.get(name, 1) for name in metrics)


def write_scores(file: Path, scores: Mapping[str, MethodScores]) -> None:
    """One method's to `file`, several ones' to a file each beside it."""
    for method, of_method in scores.items():
        name = f"{file.stem}-{method.replace('/', '-')}{file.suffix or '.json'}"
        write_text(_as_text(of_method.as_json()), file if len(scores) == 1 else file.with_name(name))


def write_report(
    folder: Path, result: Evaluation, comparisons: Sequence[Comparison], manifest: Mapping[str, Any]
) -> None:
    write_scores(folder / "scores.json", result.scores)
    write_text(_as_text(manifest), folder / "manifest.json")
    write_text(markdown(result, manifest), folder / "report.md")
    write_text(html_report(result, comparisons, manifest), folder / "report.html")


def manifest_of(arguments: Arguments, result: Evaluation, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """What it takes to measure the same again, and to see whether it was the same."""
    packages = ["jax", "jaxlib", "numpy", "pillow"]
    packages += [] if set(result.metrics) <= set(NATIVE) else ["pyiqa", "torch"]
    folders = {method: str(folder) for method, folder in zip(result.scores, arguments.restored, strict=True)}
    return {
        "protocol": describe_protocol(result.protocol),
        "metrics": list(result.metrics),
        "set": result.set_name,
        "restored": folders,
        "reference": str(arguments.reference),
        "versions": {"python": platform.python_version(), "xpsr_jax": xpsr_jax.__version__}
        | {name: importlib.metadata.version(name) for name in packages},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "weights_sha256": {path.name: sha256(path) for path in weight_files(result.metrics)},
        "images": {
            comparison.name: {"reference": sha256(comparison.reference)}
            | {method: sha256(path) for method, path in zip(folders, comparison.restored, strict=True)}
            for comparison in comparisons
        },
    }


def _as_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
