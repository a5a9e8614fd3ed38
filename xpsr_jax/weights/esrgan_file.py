"""Reads an ESRGAN network from one file, with the layer names of BasicSR or of ESRGAN's own releases."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xpsr_jax.errors import UserError, listed
from xpsr_jax.weights.tensors import Tensor, without_shared_prefix

# BasicSR's files may hold two groups: the moving average of the trained parameters, and the parameters themselves.
_AVERAGE, _TRAINED = "params_ema.", "params."
# (pattern, BasicSR's name), for the later and for the first release of ESRGAN's own code.
_LATER = (
    (r"^RRDB_trunk\.", "body."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^upconv(\d)\.", r"conv_up\1."),
    (r"^HRconv\.", "conv_hr."),
    (r"\.RDB(\d)\.", r".rdb\1."),
)
_FIRST = (
    (r"^model\.0\.", "conv_first."),
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"^model\.1\.sub\.\d+\.(weight|bias)$", r"conv_body.\1"),
)


def is_esrgan(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are an RRDBNet's tensors."""
    return any(re.search(r"(^|\.)(conv_first|model\.0)\.weight$", key) for key in keys) and any(
        re.search(r"\.(rdb|RDB)1\.conv1\.", key) for key in keys
    )


def read_esrgan(file: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config.json and the tensors of a file, with BasicSR's names.

    If the file has both a moving average and the trained parameters, the moving average is read.

    Raises UserError if it is not a complete RRDBNet.
    """
    tensors = without_shared_prefix(tensors, file, known=(_AVERAGE, _TRAINED, "conv_first.", "model.0.", "model.1."))
    for prefix in (_AVERAGE, _TRAINED):
        if any(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)}
            break
    named = {_basicsr_name(key, tensors): tensor for key, tensor in tensors.items()}
    try:
        return _config(named), named
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} is not a complete RRDBNet: {error}; found {listed(sorted(tensors))}") from error


def _basicsr_name(key: str, tensors: Mapping[str, Tensor]) -> str:
    """BasicSR's name of a tensor."""
    if not key.startswith("model."):
        for pattern, replacement in _LATER:
            key = re.sub(pattern, replacement, key)
        return key
    for pattern, replacement in _FIRST:
        key = re.sub(pattern, replacement, key)
    if not (found := re.fullmatch(r"model\.(\d+)\.(weight|bias)", key)):
        return key
    # Each doubling has three modules: enlarge, convolve, activate. Two convolutions follow, with an activation between.
    number, last = int(found[1]), max(int(other.split(".")[1]) for other in tensors)
    names = {last: "conv_last", last - 2: "conv_hr"}
    return f"{names.get(number, f'conv_up{number // 3}')}.{found[2]}"


def _config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    features, channels, *_ = tensors["conv_first.weight"].shape
    unshuffle = {3: 1, 12: 2, 48: 4}.get(channels)
    if unshuffle is None:
        raise ValueError(f"it has {channels} input channels, expected 3, 12 or 48")
    doublings = sum(re.fullmatch(r"conv_up\d\.weight", key) is not None for key in tensors)
    return {
        "_class_name": "RRDBNet",
        "features": features,
        "blocks": 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("body.")),
        "growth": tensors["body.0.rdb1.conv1.weight"].shape[0],
        "scale": 2**doublings // unshuffle,
        "unshuffle": unshuffle,
    }
