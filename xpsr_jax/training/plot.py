"""The losses of a run as a picture."""

import json
from pathlib import Path

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from xpsr_jax.files import new_file

# Of a run's terms those that are no loss, and what comes first.
_OTHERS = ("step", "images_per_second", "gradient_norm", "learning_rate")
_FIRST = ("loss", "mse", "constraint")


def plot_losses(metrics: Path, file: Path) -> None:
    """Draws every loss term of a `metrics.jsonl` over the steps, each with its running mean, as a PNG file.

    A log without lines makes no picture.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    if not lines:
        return
    terms = [name for name in lines[0] if name not in _OTHERS]
    names = [
        *(name for name in _FIRST if name in terms),
        *sorted(set(terms) - {*_FIRST}, key=lambda name: (len(name), name)),
    ]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    for panel, name in zip(panels.flat, names, strict=False):
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, values = np.array(points).T
        panel.plot(steps, values, color="0.75", linewidth=0.8)
        panel.plot(steps, _running_mean(values, max(1, len(values) // 20)), color="C0")
        if (values > 0).all():
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(ticker.NullFormatter())
        panel.set_title(name, fontsize="medium")
        panel.grid(alpha=0.3)
    figure.supxlabel("step", fontsize="medium")
    with new_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the last `width` values, of fewer at the beginning."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - width)
    return (sums[ends] - sums[begins]) / (ends - begins)
