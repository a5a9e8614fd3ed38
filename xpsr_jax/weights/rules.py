"""Names and layouts: our parameter paths and PyTorch's keys, one set of rules for both directions (method §5).

The rules turn a parameter's path ("mid_block.attentions.0.proj_in.kernel") into its key in PyTorch
("mid_block.attentions.0.proj_in.weight"). Reading applies them to all paths of a network and inverts the result. The
two directions therefore always agree. Unknown and missing tensors are the differences between the two sets of keys.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Array

from xpsr_jax.weights.tensors import FLOATS, Tensor, WeightsError, not_finite

A = TypeVar("A", np.ndarray, Array, Tensor)

# Modules with another name in PyTorch: (our name, PyTorch's). They match whole parts of a path; {n} is a number.
MODULES = (
    ("ff.proj", "ff.net.0.proj"),
    ("ff.out", "ff.net.2"),
    ("to_out", "to_out.0"),
    ("conv_degradation.{n}", "conv_degradation.{n}.0"),
    ("conv_degradation_mid", "conv_degradation_mid.0"),
    # In the first stage. BasicSR counts from 1.
    ("conv_up.0", "conv_up1"),
    ("conv_up.1", "conv_up2"),
    ("conv_up.2", "conv_up3"),
)
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# Axes for transposing the kernel of a linear layer or a convolution, by its number of axes.
TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
TO_OURS = {2: (1, 0), 4: (2, 3, 1, 0)}


@dataclass(frozen=True)
class Names:
    """Special rules for the PyTorch files of one kind of network.

    Attributes:
      prefix: prefix of every key.
      old: (pattern, replacement) for names of other releases of its library. They are read, but never written.
      pointwise: keys of linear layers that other releases save as 1x1 convolutions.
      skipped: keys that are not parameters.
      optional: parts that a network may be built without. Their keys are skipped only in that case.
    """

    prefix: str = ""
    old: tuple[tuple[str, str], ...] = ()
    pointwise: str | None = None
    skipped: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


UNET_NAMES = Names()
FIRST_STAGE_NAMES = Names()
CONTROLNET_NAMES = Names(
    optional=(
        # The Degradation-Free Constraint's heads, which only training needs.
        r"^conv_degradation\.",
        r"^conv_degradation_mid\.",
        r"^controlnet_cond_embedding\.to_rgbs\.",
        # Transformers that are not used by fusion "serial", "high" or "low".
        r"\.attentions\.",
        r"\.attentions_lowlevel\.",
        r"\.attentions_connect\.",
    )
)
AUTOENCODER_NAMES = Names(
    # Names of diffusers before 0.12, also used in Stable Diffusion 1.5's own folder.
    old=(
        (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
        (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
        (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
        (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
    ),
    pointwise=r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight$",
)
TEXT_ENCODER_NAMES = Names(
    prefix="text_model.",
    # transformers 5 writes no prefix.
    old=((r"^(?!text_model\.)", "text_model."),),
    # The constant 0, 1, ..., 76, which transformers before 4.31 saved.
    skipped=(r"^text_model\.embeddings\.position_ids$",),
)


def torch_key(path: str, names: Names = UNET_NAMES) -> str:
    """PyTorch's key of one of our parameter paths (parts joined by ".")."""
    module, _, leaf = path.rpartition(".")
    for pattern, replacement in _MODULE_PATTERNS:
        module = pattern.sub(replacement, module)
    return f"{names.prefix}{module}.{LEAVES[leaf]}"


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """PyTorch's shape of one of our parameters."""
    return tuple(shape[axis] for axis in TO_TORCH[len(shape)]) if path.endswith(".kernel") else tuple(shape)


def to_torch(path: str, array: A, names: Names = UNET_NAMES) -> tuple[str, A]:
    """PyTorch's key and layout of one of our parameters: a numpy array (gives a view), a JAX array or a `Tensor`."""
    layout = array.transpose(TO_TORCH[len(array.shape)]) if path.endswith(".kernel") else array
    return torch_key(path, names), layout


def to_ours(path: str, array: A) -> A:
    """Our layout of an array that has the key `torch_key(path)` in PyTorch."""
    return array.transpose(TO_OURS[len(array.shape)]) if path.endswith(".kernel") else array


def current_key(key: str, names: Names) -> str:
    """The current name of a key. The key may be current already, or written by an older release."""
    for pattern, replacement in names.old:
        key = re.sub(pattern, replacement, key)
    return key


def match(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], names: Names, *, where: object
) -> dict[str, Tensor]:
    """The tensors of a PyTorch file by our paths and in our layout.

    Args:
      tensors: by the file's keys, current or old.
      shapes: the shape of every parameter of the network, by path.
      where: the file or folder, for the error.

    Raises:
      WeightsError: lists every tensor that is unknown, missing, present twice, has a wrong shape (with both shapes) or
        is not floating-point. In that case it also lists tensors with NaN or infinity, which are otherwise found when
        they are read.
    """
    paths = {torch_key(path, names): path for path in shapes}
    skipped = (*names.skipped, *(pattern for pattern in names.optional if not holds(paths, pattern)))
    found: dict[str, Tensor] = {}
    problems = []
    for key, tensor in tensors.items():
        current = current_key(key, names)
        if any(re.search(pattern, current) for pattern in skipped):
            continue
        label = current if tensor.name == current else f"{tensor.name} (current name {current})"
        path = paths.get(current)
        if path is None:
            problems.append(f"unknown: {label} {tensor.shape}; the network has no such tensor")
            continue
        if path in found:
            problems.append(f"present twice: {label} {tensor.shape}, also as {found[path].name}")
            continue
        expected = torch_shape(path, shapes[path])
        if names.pointwise and tensor.shape == (*expected, 1, 1) and re.search(names.pointwise, current):
            tensor = tensor.reshape(expected)
        if tensor.dtype not in FLOATS.values():
            problems.append(f"wrong type: {label} is {tensor.dtype.name}, expected one of {', '.join(FLOATS)}")
        if tensor.shape != expected:
            problems.append(f"wrong shape: {label} is {tensor.shape}, expected {expected}")
        found[path] = to_ours(path, tensor) if tensor.shape == expected else tensor
    missing = [key for key, path in paths.items() if path not in found]
    problems += [f"missing: {key} {torch_shape(paths[key], shapes[paths[key]])}" for key in missing]
    if problems:
        problems += [not_finite(tensor) for tensor in tensors.values() if not np.isfinite(tensor.read()).all()]
        raise WeightsError(where, problems, _hint(missing))
    return {path: found[path] for path in shapes}


def holds(keys: Iterable[str], pattern: str) -> bool:
    """Whether the pattern matches somewhere in one of the keys."""
    return any(re.search(pattern, key) for key in keys)


def _hint(missing: list[str]) -> str:
    if missing and all(".pixel_attentions." in key for key in missing):
        return "this UNet is not XPSR's, it has no Conditional Attention; name XPSR's own folder last"
    return ""


def _whole_parts(ours: str) -> re.Pattern[str]:
    return re.compile(r"(?<![^.])" + re.escape(ours).replace(r"\{n\}", r"(\d+)") + r"(?![^.])")


_MODULE_PATTERNS = tuple((_whole_parts(ours), torch.replace("{n}", r"\1")) for ours, torch in MODULES)
