"""NIQE, MUSIQ, MANIQA, CLIP-IQA and FID by pyiqa (extra `iqa`), on PyTorch.

pyiqa is for non-commercial use only: it is under CC BY-NC-SA 4.0 and NTU S-Lab's licence, and so are scores that need
it. It downloads each metric's weights when the metric is first used. Compared with pyiqa 0.1.16.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.protocols import MetricName

# Our names and pyiqa's. Its "maniqa" is the one trained on KonIQ-10k.
PYIQA_NAMES: dict[MetricName, str] = {
    "niqe": "niqe",
    "musiq": "musiq",
    "maniqa": "maniqa",
    "maniqa_pipal": "maniqa-pipal",
    "clipiqa": "clipiqa",
    "fid": "fid",
}
_SEED = 123
_INCEPTION_SIDE = 299


def require_pyiqa() -> ModuleType:
    """The package. Raises UserError that says how to get it."""
    try:
        import pyiqa  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise UserError(
            f"NIQE, MUSIQ, MANIQA, CLIP-IQA and FID need pyiqa ({error}). Do: pip install 'xpsr-jax[iqa]' (for "
            "non-commercial use only), or leave them out with --metrics"
        ) from error
    package: ModuleType = pyiqa
    return package


class NoReferenceMetric:
    """How good an image is, judged without an original."""

    def __init__(self, name: MetricName):
        """Raises UserError where pyiqa or the metric's weights are not there and cannot be downloaded."""
        self.name = name
        self._metric = _create(name)

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b"]:
        """The score of each image of a batch; it does not depend on the others."""
        import torch

        # MANIQA takes 20 crops of an image, in older versions drawn ones: each image is given alone, seeded alike.
        batches = list(images[:, None]) if self.name in ("maniqa", "maniqa_pipal") else [images]
        scores = []
        for batch in batches:
            torch.manual_seed(_SEED)
            with torch.no_grad():
                scores.append(self._metric(_as_tensor(batch)).reshape(-1).cpu().numpy())
        return np.concatenate(scores).astype(np.float64)


class InceptionFeatures:
    """The features whose statistics FID compares (`frechet`): Inception's last pooling, "clean" as pyiqa's FID is.

    Attributes:
        width: features of an image.
    """

    width = 2048

    def __init__(self) -> None:
        """Raises UserError where pyiqa or the network's weights are not there and cannot be downloaded."""
        self._metric = _create("fid")

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[np.ndarray, "b {self.width}"]:
        """The features of each image, float64.

        Args:
          images: RGB, of any sizes: each is resized to 299 x 299.
        """
        import torch

        batch = torch.from_numpy(np.stack([_clean_resize(image) for image in images])).permute(0, 3, 1, 2)
        with torch.no_grad():
            # Neither resized nor normalised by the network: both are done.
            [features] = self._metric.net.model(batch.to(self._metric.device), False, False)
        array: np.ndarray = features.flatten(1).cpu().numpy()
        return array.astype(np.float64)


def _clean_resize(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "299 299 3"]:
    """To Inception's size without aliasing or rounding (Parmar et al., 2022), in [-1, 1]."""
    size = (_INCEPTION_SIDE, _INCEPTION_SIDE)
    channels = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
        for channel in np.moveaxis(image, -1, 0)
    ]
    return (np.stack(channels, axis=-1).clip(0, 255) - 128) / 128


def _as_tensor(images: UInt8[np.ndarray, "b h w 3"]) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1))).float() / 255


def _create(name: MetricName) -> Any:
    pyiqa = require_pyiqa()
    try:
        return pyiqa.create_metric(PYIQA_NAMES[name])
    except Exception as error:  # of a download that failed: OSError, RuntimeError, ValueError, of several packages
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"pyiqa could not make its metric {PYIQA_NAMES[name]!r}: {reason}. It downloads the weights on first use: "
            "try again with a connection, put the file where pyiqa looks (~/.cache/torch/hub/pyiqa), or leave the "
            "metric out with --metrics"
        ) from error
