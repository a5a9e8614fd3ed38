"""How the field measures: which metrics, on which channels, how much border is left out. By name, so a report says it.

Sources, all public: the released script of XPSR (method §7), which makes every metric with pyiqa's defaults; for SeeSR,
which has released no script, its paper and the authors' answers in its repository (issues 30 and 60).
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
    """One way of measuring.

    Attributes:
        name: as on the command line.
        channels: what PSNR and SSIM compare (`pixels`).
        border: pixels on each side that PSNR and SSIM leave out. All other metrics see whole images.
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
    # MANIQA is the one trained on KonIQ-10k, pyiqa's default.
    "xpsr": Protocol("xpsr", "y", 0, ("psnr", "ssim", "lpips", "dists", "fid", "niqe", "maniqa", "musiq", "clipiqa")),
    # MANIQA is the one trained on PIPAL. Luma is the studio range's: the authors' PSNR of DRealSR, 28.17 dB, is what
    # others measure with full range, 26.85, and 20 log10(255 / 219) = 1.32 dB.
    "seesr": Protocol(
        "seesr", "y", 4, ("psnr", "ssim", "lpips", "dists", "fid", "niqe", "maniqa_pipal", "musiq", "clipiqa")
    ),
}
