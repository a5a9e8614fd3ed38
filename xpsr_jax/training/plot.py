"""Draws the log of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xpsr_jax.files import new_file
from xpsr_jax.training.log import is_validation, read_metrics

# The logged values that are not drawn, and those that are drawn first.
_NOT_DRAWN = ("step", "images_per_second", "gradient_norm")
_FIRST = ("loss", "mse", "constraint")
_RATE = "learning_rate"


def plot_metrics(metrics: Path, file: Path) -> None:
    """Draws the values in a `metrics.jsonl` against the steps, as a PNG file.

    The panels are: every term of the loss with its running mean, the learning rate, the scores of the validations.
    An empty log makes no picture.
    """
    lines = list(read_metrics(metrics))
    if not lines:
        return
    names = _names(lines)
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    last = max(line["step"] for line in lines)
    for panel, name in zip(panels.flat, names, strict=False):
        points = np.array([(line["step"], line[name]) for line in lines if name in line], float)
        if name.startswith("validation_"):
            panel.plot(*points.T, color="C1", marker="o", markersize=3)
        elif name == _RATE:
            panel.plot(*points.T, color="C2")
        else:
            _draw_loss(panel, points)
        panel.set_xlim(0, 1.02 * last)
        panel.set_title(name.replace("_", " "), fontsize="medium")
        panel.grid(alpha=0.3)
    figure.supxlabel("step", fontsize="medium")
    with new_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _names(lines: Sequence[dict[str, float]]) -> list[str]:
    """The names to draw, in order: the terms of the loss, the learning rate if it was logged, the scores."""
    training = dict.fromkeys(name for line in lines if not is_validation(line) for name in line)
    scores = dict.fromkeys(name for line in lines if is_validation(line) for name in line if name != "step")
    losses = set(training) - {*_NOT_DRAWN, _RATE}
    first = [name for name in _FIRST if name in losses]
    others = sorted(losses - {*_FIRST}, key=lambda name: (len(name), name))
    return [*first, *others, *([_RATE] if _RATE in training else []), *scores]


def _draw_loss(panel: Axes, points: Float[np.ndarray, "n 2"]) -> None:
    steps, values = points.T
    panel.plot(steps, values, color="0.75", linewidth=0.8)
    panel.plot(steps, _running_mean(values, max(1, len(values) // 20)), color="C0")
    if (values > 0).all():
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(ticker.NullFormatter())


def _running_mean(values: Float[np.ndarray, "n"], width: int) -> Float[np.ndarray, "n"]:
    """The mean of the last `width` values, and of fewer at the beginning."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - width)
    means: np.ndarray = (sums[ends] - sums[begins]) / (ends - begins)
    return means
