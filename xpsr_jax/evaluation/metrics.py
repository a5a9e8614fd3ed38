"""Four metrics for batches of image pairs: jitted, and computed on all devices.

    xpsr_jax.dists(a, b)    # also xpsr_jax.lpips, .psnr and .ssim; imported from here at first use

Images are RGB, 8-bit or float in [0, 1], with shape (b, h, w, 3), or (h, w, 3) for one pair. Values are float32.
Weights are read once. In your own jitted function, pass `Dists.load()` or `Lpips.load()` as an argument instead
(`perceptual`).
"""

import functools
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Shaped

from xpsr_jax.evaluation.backbones import SMALLEST_SIDE
from xpsr_jax.evaluation.perceptual import Dists, Lpips
from xpsr_jax.evaluation.pixels import Psnr, Ssim
from xpsr_jax.evaluation.protocols import Channels

RgbBatch = Shaped[Array, "*b h w 3"] | Shaped[np.ndarray, "*b h w 3"]


@runtime_checkable
class Metric(Protocol):
    """The interface of all four metrics: features of an image, which can be reused, and a distance of features."""

    def features(self, images: Float[Array, "b h w 3"], /) -> Any:
        """The features of images in [0, 1]: a tree of arrays. Its form depends on the metric."""

    def distance(self, a: Any, b: Any, /) -> Float[Array, "b"]:
        """The metric's value for each pair, from the features of both images. For PSNR and SSIM, higher is better."""


def dists(a: RgbBatch, b: RgbBatch) -> Float[Array, "*b"]:
    """DISTS (Ding et al., 2020) of each pair. 0 for equal images, lower is better. Symmetric.

    Raises:
        ValueError: the shapes differ or are not shapes of RGB images.
        UserError: the weights are not installed (`pip install 'xpsr-jax[metrics]'`).
    """
    return _of_pairs(_loaded("dists"), a, b, smallest=1)


def lpips(a: RgbBatch, b: RgbBatch, *, net: Literal["alex", "vgg"] = "alex") -> Float[Array, "*b"]:
    """LPIPS 0.1 (Zhang et al., 2018) of each pair. 0 for equal images, lower is better. Raises like `dists`."""
    metric = _loaded(f"lpips_{net}")
    return _of_pairs(metric, a, b, smallest=SMALLEST_SIDE["alexnet" if net == "alex" else "vgg16"])


def psnr(a: RgbBatch, b: RgbBatch, *, channels: Channels = "y") -> Float[Array, "*b"]:
    """Peak signal-to-noise ratio of each pair in dB, at most 80. `pixels` explains `channels`. Raises ValueError."""
    return _of_pairs(Psnr(channels), a, b, smallest=1)


def ssim(a: RgbBatch, b: RgbBatch, *, channels: Channels = "y") -> Float[Array, "*b"]:
    """Structural similarity of each pair (Wang et al., 2004). 1 for equal images. Raises ValueError."""
    return _of_pairs(Ssim(channels), a, b, smallest=11)


def load_metric(name: Literal["lpips_alex", "lpips_vgg", "dists"]) -> Lpips | Dists:
    """Loads a perceptual metric for measuring. On a CPU, its kernels are transformed for speed. Raises like `dists`."""
    metric: Lpips | Dists = Dists.load() if name == "dists" else Lpips.load("alex" if name == "lpips_alex" else "vgg")
    return metric.for_cpu() if jax.default_backend() == "cpu" else metric


def compare(
    metrics: tuple[Metric, ...], restored: Shaped[Array, "k b h w 3"], reference: Shaped[Array, "b h w 3"]
) -> Float[Array, "m k b"]:
    """Measures every metric of k results for each of b references. Features of a reference are computed once.

    The references are split over all local devices. b does not have to be a multiple of their number.
    """
    mesh = _mesh()
    count = reference.shape[0]
    more = -count % mesh.size
    if more:
        reference = jnp.concatenate([reference, jnp.repeat(reference[-1:], more, axis=0)])
        restored = jnp.concatenate([restored, jnp.repeat(restored[:, -1:], more, axis=1)], axis=1)
    distances: Array = _compare(mesh, metrics, restored, reference)
    return distances[..., :count]


@functools.partial(jax.jit, static_argnums=0)
def _compare(mesh: jax.sharding.Mesh, metrics: tuple[Metric, ...], restored: Array, reference: Array) -> Array:
    # Each device works on its own images and does not wait for others.
    per_device = jax.shard_map(
        _compare_on_one_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None, "data"), PartitionSpec("data")),
        out_specs=PartitionSpec(None, None, "data"),
        check_vma=False,
    )
    distances: Array = per_device(metrics, restored, reference)
    return distances


def _compare_on_one_device(metrics: tuple[Metric, ...], restored: Array, reference: Array) -> Array:
    def of_reference(images: tuple[Array, Array]) -> Array:
        results, original = images
        features = [metric.features(as_float(original)[None]) for metric in metrics]
        distances: Array = jax.lax.map(
            lambda result: jnp.stack(
                [m.distance(m.features(as_float(result)[None]), f)[0] for m, f in zip(metrics, features, strict=True)]
            ),
            results,
        )
        return distances

    # One image after the other, because VGG16's features of one image already take gigabytes and use all cores.
    of_all: Array = jax.lax.map(of_reference, (restored.swapaxes(0, 1), reference))
    return of_all.transpose(2, 1, 0)


def as_float(images: Array) -> Array:
    """Converts 8-bit images to [0, 1]. Float images are unchanged."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


@functools.cache
def _loaded(name: Literal["lpips_alex", "lpips_vgg", "dists"]) -> Lpips | Dists:
    with jax.ensure_compile_time_eval():  # the weights outlive a function that is being traced
        return load_metric(name)


def _mesh() -> jax.sharding.Mesh:
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def _of_pairs(metric: Metric, a: RgbBatch, b: RgbBatch, *, smallest: int) -> Array:
    if a.shape != b.shape or a.ndim not in (3, 4) or a.shape[-1] != 3:
        raise ValueError(
            f"Both must be RGB images or batches of equal shape (b, h, w, 3), not {a.shape} and {b.shape}."
        )
    for images in (a, b):
        if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"An image must be 8-bit, or float in [0, 1], not {images.dtype}.")
    height, width = a.shape[-3:-1]
    if min(height, width) < smallest:
        raise ValueError(f"{height} x {width} pixels are too few: this metric needs {smallest} x {smallest}.")
    if a.ndim == 3:
        return _of_pairs(metric, a[None], b[None], smallest=smallest)[0]
    return compare((metric,), jnp.asarray(a)[None], jnp.asarray(b))[0, 0]
