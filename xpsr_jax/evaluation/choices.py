"""Chooses the metrics to measure, and the smallest images that they accept."""

from collections.abc import Sequence

from xpsr_jax.evaluation.backbones import SMALLEST_SIDE
from xpsr_jax.evaluation.protocols import NATIVE, MetricName, Protocol
from xpsr_jax.evaluation.with_pyiqa import require_pyiqa


def choose_metrics(asked: Sequence[str], protocol: Protocol) -> tuple[MetricName, ...]:
    """The metrics to measure: those of the protocol in its order, then others.

    Args:
        asked: names of metrics, or "all". Empty: the protocol's metrics that do not need PyTorch.
        protocol: the protocol.

    Raises UserError if a metric needs pyiqa and pyiqa is not installed.
    """
    if not asked:
        return protocol.native_metrics
    wanted = set(asked) | (set(protocol.metrics) if "all" in asked else set())
    known = [*protocol.metrics, *(name for name in asked if name != "all" and name not in protocol.metrics)]
    metrics = tuple(dict.fromkeys(name for name in known if name in wanted))
    if not set(metrics) <= set(NATIVE):
        require_pyiqa()
    return metrics  # type: ignore[return-value]  # "all" is not among them


def least_side(metrics: Sequence[MetricName], protocol: Protocol) -> int:
    """The shortest side of an image that all metrics accept, in pixels."""
    least = {"ssim": 11 + 2 * protocol.border, "psnr": 1 + 2 * protocol.border}
    least |= {"lpips": SMALLEST_SIDE["alexnet"], "lpips_vgg": SMALLEST_SIDE["vgg16"], "niqe": 96}
    return max(least.get(name, 1) for name in metrics)
