"""NIQE, MUSIQ, MANIQA, CLIP-IQA and FID by pyiqa (extra `iqa`), on PyTorch.

pyiqa is for non-commercial use only. It has the licences CC BY-NC-SA 4.0 and NTU S-Lab, and so have scores that need
it. It downloads each metric's weights at the first use of the metric. The results were compared with pyiqa 0.1.16.
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
    """Returns the package. If it is missing, raises a UserError that says how to install it."""
    try:
        import pyiqa  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise UserError(
            f"NIQE, MUSIQ, MANIQA, CLIP-IQA and FID need pyiqa ({error}). Install it: pip install 'xpsr-jax[iqa]' (for "
            "non-commercial use only), or choose other metrics with --metrics"
        ) from error
    package: ModuleType = pyiqa
    return package


class NoReferenceMetric:
    """A metric that judges an image without its original."""

    def __init__(self, name: MetricName):
        """Raises UserError if pyiqa is missing, or the metric's weights are missing and cannot be downloaded."""
        self.name = name
        self._metric = _create(name)

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b"]:
        """The score of each image of a batch. It does not depend on the other images."""
        import torch

        # MANIQA uses 20 crops of an image, which are random in older versions. So each image is scored alone, with the
        # same seed.
        batches = list(images[:, None]) if self.name in ("maniqa", "maniqa_pipal") else [images]
        scores = []
        for batch in batches:
            torch.manual_seed(_SEED)
            with torch.no_grad():
                scores.append(self._metric(_as_tensor(batch)).reshape(-1).cpu().numpy())
        return np.concatenate(scores).astype(np.float64)


class InceptionFeatures:
    """The features for FID (`frechet`): Inception's last pooling layer, with "clean" resizing like pyiqa's FID.

    Attributes:
        width: number of features of an image.
    """

    width = 2048

    def __init__(self) -> None:
        """Raises UserError if pyiqa is missing, or the network's weights are missing and cannot be downloaded."""
        self._metric = _create("fid")

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[np.ndarray, "b {self.width}"]:
        """The features of each image, float64.

        Args:
          images: RGB images of any size. Each is resized to 299 x 299.
        """
        import torch

        batch = torch.from_numpy(np.stack([_clean_resize(image) for image in images])).permute(0, 3, 1, 2)
        with torch.no_grad():
            # The images are resized and normalised already, so the network must not do it again.
            [features] = self._metric.net.model(batch.to(self._metric.device), False, False)
        array: np.ndarray = features.flatten(1).cpu().numpy()
        return array.astype(np.float64)


def _clean_resize(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "299 299 3"]:
    """Resizes an image to Inception's size without aliasing or rounding (Parmar et al., 2022), in [-1, 1]."""
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
    except Exception as error:  # failed downloads raise OSError, RuntimeError or ValueError, from several packages
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"pyiqa could not make its metric {PYIQA_NAMES[name]!r}: {reason}. It downloads the weights at first use: "
            "try again with a connection, put the file into pyiqa's cache (~/.cache/torch/hub/pyiqa), or leave the "
            "metric out with --metrics"
        ) from error
