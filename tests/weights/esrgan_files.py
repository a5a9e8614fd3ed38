"""Writes files of ESRGAN networks with each naming of the tensors, from the tensors of the golden file."""

import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.models.golden import VECTORS, under

# From the names of the first release, which the golden file has.
_LATER = {
    "model.0": "conv_first",
    "model.1.sub.1": "trunk_conv",
    "model.3": "upconv1",
    "model.6": "upconv2",
    "model.8": "HRconv",
    "model.10": "conv_last",
}
_BASICSR = _LATER | {
    "model.1.sub.1": "conv_body",
    "model.3": "conv_up1",
    "model.6": "conv_up2",
    "model.8": "conv_hr",
}
NAMINGS = ("first", "later", "basicsr", "basicsr_average", "wrapped")


def tensors_of(case: str) -> dict[str, np.ndarray]:
    """A case's tensors by the names of the first release, and its "in" and "out"."""
    tensors = load_file(VECTORS / "first_stage.safetensors")
    return under(f"{case}.", tensors) | under("body.", tensors)


def write(tensors: dict[str, np.ndarray], naming: str, folder: Path) -> Path:
    """Writes the tensors into a safetensors file with this naming."""
    named = {name: tensor for name, tensor in tensors.items() if name not in ("in", "out")}
    if naming == "later":
        named = {_renamed(name, _LATER, "RRDB_trunk", "RDB"): tensor for name, tensor in named.items()}
    elif naming != "first":
        named = {_renamed(name, _BASICSR, "body", "rdb"): tensor for name, tensor in named.items()}
    if naming == "basicsr_average":
        named = {f"params_ema.{name}": tensor for name, tensor in named.items()} | {
            f"params.{name}": tensor + 1 for name, tensor in named.items()
        }
    if naming == "wrapped":
        named = {f"module.{name}": tensor for name, tensor in named.items()}
    save_file(named, folder / "network.safetensors")
    return folder / "network.safetensors"


def _renamed(name: str, ends: dict[str, str], body: str, dense: str) -> str:
    if found := re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(\w+)", name):
        return f"{body}.{found[1]}.{dense}{found[2]}.conv{found[3]}.{found[4]}"
    module, _, leaf = name.rpartition(".")
    return f"{ends[module]}.{leaf}"
