"""The protocols of the field: which metrics, on which channels, with how much of the border cropped.

A protocol has a name, so that a report can state it. All sources are public. For XPSR: the released script (method §7),
which creates every metric with pyiqa's defaults. For SeeSR, which has no released script: its paper, and the authors'
answers in its repository (issues 30 and 60).
"""

from dataclasses import dataclass
from typing import Literal, get_args

Channels = Literal["y", "y-full", "rgb"]
MetricName = Literal[
    "psnr", "ssim", "lpips", "lpips_vgg", "dists", "niqe", "musiq", "maniqa", "maniqa_pipal", "clipiqa", "fid"
]
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
NATIVE: tuple[MetricName, ...] = ("psnr", "ssim", "lpips", "lpips_vgg", "dists")
LOWER_IS_BETTER: frozenset[MetricName] = frozenset({"lpips", "lpips_vgg", "dists", "niqe", "fid"})
TITLES: dict[MetricName, str] = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS (alex)",
    "lpips_vgg": "LPIPS (vgg)",
    "dists": "DISTS",
    "niqe": "NIQE",
    "musiq": "MUSIQ",
    "maniqa": "MANIQA (KonIQ)",
    "maniqa_pipal": "MANIQA (PIPAL)",
    "clipiqa": "CLIP-IQA",
    "fid": "FID",
}


@dataclass(frozen=True)
class Protocol:
    """A protocol for measuring.

    Attributes:
        name: its name on the command line.
        channels: the channels that PSNR and SSIM compare (`pixels`).
        border: pixels that PSNR and SSIM ignore on each side. All other metrics see whole images.
        metrics: all of its metrics, in the order of its tables.
    """

    name: Literal["xpsr", "seesr"]
    channels: Channels
    border: int
    metrics: tuple[MetricName, ...]

    @property
    def native_metrics(self) -> tuple[MetricName, ...]:
        """The metrics that do not need PyTorch."""
        return tuple(name for name in self.metrics if name in NATIVE)


PROTOCOLS: dict[str, Protocol] = {
    # MANIQA is the version trained on KonIQ-10k, pyiqa's default.
    "xpsr": Protocol("xpsr", "y", 0, ("psnr", "ssim", "lpips", "dists", "fid", "niqe", "maniqa", "musiq", "clipiqa")),
    # MANIQA is the version trained on PIPAL. Luma is in studio range: the authors' PSNR on DRealSR, 28.17 dB, equals
    # the 26.85 dB that others measure with full range, plus 20 log10(255 / 219) = 1.32 dB.
    "seesr": Protocol(
        "seesr", "y", 4, ("psnr", "ssim", "lpips", "dists", "fid", "niqe", "maniqa_pipal", "musiq", "clipiqa")
    ),
}
