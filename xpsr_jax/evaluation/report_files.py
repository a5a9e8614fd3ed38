"""Writes scores and reports to files, and reads scores from elsewhere."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from xpsr_jax.errors import UserError, listed
from xpsr_jax.evaluation.html_report import html_report
from xpsr_jax.evaluation.matching import Comparison
from xpsr_jax.evaluation.perceptual import weight_files
from xpsr_jax.evaluation.protocols import METRIC_NAMES, NATIVE, MetricName
from xpsr_jax.evaluation.tables import Evaluation, describe, markdown, notes, rows_beside
from xpsr_jax.files import write_text
from xpsr_jax.inference.manifest import sha256
from xpsr_jax.json_files import read_json
from xpsr_jax.version import __version__


def read_others(file: Path) -> dict[str, dict[MetricName, float]]:
    """Reads scores by method and metric. Raises UserError if the file has anything else."""
    others: dict[str, dict[MetricName, float]] = {}
    for method, row in read_json(file).items():
        if not isinstance(row, dict):
            raise UserError(f'{file}: {method} must be an object such as {{"psnr": 28.1, "ssim": 0.79}}')
        if unknown := sorted(row.keys() - set(METRIC_NAMES)):
            known = ", ".join(METRIC_NAMES)
            raise UserError(f"{file}: {method} has an unknown metric: {listed(unknown)}; known metrics are {known}")
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"{file}: {method}.{name} must be a finite number, not {str(value)[:60]}")
        others[method] = {name: float(value) for name, value in row.items()}
    return others


def write_scores(file: Path, result: Evaluation) -> None:
    """Writes the scores of one method to `file`. The scores of several methods go to one file each, beside it.

    If the paper's scores are shown, each file has them as well: `{"paper": {"set", "note", "scores"}}`.
    """
    paper: dict[str, Any] = {}
    if result.paper:
        scores = rows_beside(result).get("paper", {})
        paper = {"paper": {"set": result.set_name, "note": notes(result)["paper"], "scores": scores}}
    for method, of_method in result.scores.items():
        name = f"{file.stem}-{method.replace('/', '-')}{file.suffix or '.json'}"
        place = file if len(result.scores) == 1 else file.with_name(name)
        write_text(_as_text(of_method.as_json() | paper), place)


def write_report(
    folder: Path, result: Evaluation, comparisons: Sequence[Comparison], manifest: Mapping[str, Any]
) -> None:
    """Writes scores.json (one file for each method if there are several), manifest.json, report.md and report.html.

    Args:
      folder: the folder for the files. Existing files with these names are replaced.
      result: the scores.
      comparisons: the pictures that the HTML report shows.
      manifest: the result of `manifest_of`.

    Raises UserError if the system refuses.
    """
    write_scores(folder / "scores.json", result)
    write_text(_as_text(manifest), folder / "manifest.json")
    write_text(markdown(result, manifest), folder / "report.md")
    write_text(html_report(result, comparisons, manifest), folder / "report.html")


def manifest_of(
    restored: Sequence[Path],
    reference: Path,
    result: Evaluation,
    comparisons: Sequence[Comparison],
    *,
    match: str | None = None,
) -> dict[str, Any]:
    """The information that is needed to repeat the measurement and to check that the files are the same.

    Args:
      restored: folder of each method.
      reference: folder of the originals.
      result: the scores.
      comparisons: the measured images.
      match: the rule OLD=NEW by which names were matched. None: names were the same.
    """
    packages = ["jax", "jaxlib", "numpy", "pillow"]
    packages += [] if set(result.metrics) <= set(NATIVE) else ["pyiqa", "torch"]
    folders = {method: str(folder) for method, folder in zip(result.scores, restored, strict=True)}
    return {
        "protocol": describe(result),
        "metrics": list(result.metrics),
        "set": result.set_name,
        "restored": folders,
        "reference": str(reference),
        **({"match": match} if match is not None else {}),
        **({"crop_to_multiple": result.crop_to_multiple} if result.crop_to_multiple > 1 else {}),
        "versions": {"python": platform.python_version(), "xpsr_jax": __version__}
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
