"""Reads files of LoRA adapters, with the names of kohya's scripts, of diffusers or of PEFT."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpsr_jax.errors import UserError, listed
from xpsr_jax.json_files import parse_json, read_json
from xpsr_jax.weights import hub
from xpsr_jax.weights.single_file import SUFFIXES, read_tensors
from xpsr_jax.weights.tensors import Tensor
from xpsr_jax.weights.torch_files import read_metadata

# (pattern of a key, kind of adapter that has such keys): kinds that cannot be merged.
_OTHERS = (
    (r"\.hada_[wt]\d", "LoHa (hada_w1_a)"),
    (r"\.lokr_[wt]\d", "LoKr (lokr_w1)"),
    (r"\.(dora_scale|lora_magnitude_vector)", "DoRA (dora_scale)"),
    (r"\.lora_mid\.", "LoCon with a core of its own, a Tucker decomposition (lora_mid)"),
    (r"\.(oft_blocks|oft_diag|oft_R)", "OFT (oft_blocks)"),
    (r"\.(diff|diff_b)$", "whole differences (diff)"),
    (r"\.lora_B(\.\w+)?\.bias$", "LoRA with biases (lora_B.bias)"),
    (r"^lora_te2_|^text_encoder_2\.", "a LoRA of Stable Diffusion XL, which has two text encoders"),
)
_KOHYA = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder"}
_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_PARTS = (
    (r"(.+)\.lora_(down|up)\.weight", {"down": "down", "up": "up"}),
    (r"(.+)\.lora_(A|B)(?:\.\w+)?\.weight", {"A": "down", "B": "up"}),
    (r"(.+)\.lora\.(down|up)\.weight", {"down": "down", "up": "up"}),
)


@dataclass(frozen=True)
class Pair:
    """A change of one weight: scale * up @ down.

    Attributes:
      name: the module's name in the file, for messages.
      down: shape (rank, in), or (rank, in, height, width) for a convolution.
      up: shape (out, rank), or (out, rank, 1, 1).
      scale: alpha / rank.
    """

    name: str
    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True)
class LoRA:
    """The content of a LoRA file.

    Attributes:
      file: its path.
      modules: "unet" or "text_encoder" -> module -> its pair. A module's name has dots; kohya's scripts write
        underscores instead.
    """

    file: Path
    modules: Mapping[str, Mapping[str, Pair]]


def split_strength(text: str) -> tuple[str, float]:
    """Splits "FILE:0.7" into (FILE, 0.7). Without a number the strength is 1. Raises UserError for NaN or infinity."""
    file, _, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:
        return text, 1.0
    if not file or not math.isfinite(strength):
        raise UserError(f"--lora {text}: name a file and its strength, such as style.safetensors:0.7")
    return file, strength


def read_lora(path: str | Path) -> LoRA:
    """The adapters of a local file or of a file on the hub. Their data are read later.

    Raises UserError if it is not a LoRA, or is of a kind that cannot be merged. The error names the kind.
    """
    file = hub.local(path)
    if not file.is_file():
        raise UserError(f"{file} is not a file; --lora needs the path of a LoRA file, {' or '.join(SUFFIXES)}")
    tensors = read_tensors(file)
    for pattern, kind in _OTHERS:
        if any(re.search(pattern, key) for key in tensors):
            raise UserError(f"{file} is {kind}, which cannot be merged; supported are LoRA and plain LoCon")
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        if (found := _parsed(key)) is None:
            unknown.append(key)
            continue
        component, module, part = found
        if part in parts.setdefault((component, module), {}):
            raise UserError(f"{file} has {part} of {module} twice")
        parts[component, module][part] = tensor
    if unknown or not parts:
        raise UserError(f"{file} is not a known kind of LoRA; it holds {listed(unknown, limit=3) or 'nothing'}")
    settings = _settings(file)
    modules: dict[str, dict[str, Pair]] = {"unet": {}, "text_encoder": {}}
    for (component, module), halves in parts.items():
        if not {"down", "up"} <= halves.keys():
            raise UserError(f"{file} is incomplete: {module} has only {', '.join(sorted(halves))}")
        scale = _scale(settings, component, module, halves)
        modules[component][module] = Pair(module, halves["down"], halves["up"], scale)
    return LoRA(file, {component: pairs for component, pairs in modules.items() if pairs})


def _parsed(key: str) -> tuple[str, str, str] | None:
    """The component, the module, and "down", "up" or "alpha". None for an unknown key."""
    if kohya := re.fullmatch(r"lora_(unet|te1?)_(\w+)\.(?:lora_(down|up)\.weight|(alpha))", key):
        return _KOHYA[kohya[1]], kohya[2], kohya[3] or kohya[4]
    component, rest = _component(key)
    # diffusers wrote these names before it used PEFT.
    rest = rest.replace(".lora_linear_layer.", ".lora.")
    if component == "text_encoder":
        rest = re.sub(r"\.(to_q|to_k|to_v|to_out)_lora\.", lambda found: f".{_TEXT[found[1]]}.lora.", rest)
    else:
        rest = re.sub(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.", r".\1.lora.", rest)
        rest = re.sub(r"\.to_out\.lora\.", ".to_out.0.lora.", rest)
    for pattern, names in _PARTS:
        if found := re.fullmatch(pattern, rest):
            return component, found[1], names[found[2]]
    if rest.endswith(".alpha"):
        return component, re.sub(r"\.lora$", "", rest.removesuffix(".alpha")), "alpha"
    return None


def _component(key: str) -> tuple[str, str]:
    """The component and the rest of a key. The text encoder's keys are recognized without a prefix too."""
    key = key.removeprefix("base_model.model.")
    for component in ("unet", "text_encoder"):
        if key.startswith(f"{component}."):
            return component, key.removeprefix(f"{component}.")
    return ("text_encoder" if key.startswith(("text_model.", "encoder.layers.")) else "unet"), key


def _settings(file: Path) -> Mapping[str, Any]:
    """PEFT's configuration: from the file's metadata, or for all components from adapter_config.json beside it."""
    if file.suffix == ".safetensors" and (text := read_metadata(file).get("lora_adapter_metadata")):
        return parse_json(text.encode(), f"{file}: lora_adapter_metadata")
    beside = file.with_name("adapter_config.json")
    return read_json(beside) if file.stem.startswith("adapter_model") and beside.is_file() else {}


def _scale(settings: Mapping[str, Any], component: str, module: str, parts: Mapping[str, Tensor]) -> float:
    """alpha / rank; with PEFT's rsLoRA, alpha / sqrt(rank). The default of alpha is the rank."""

    def setting(name: str, default: Any = None) -> Any:
        return settings.get(f"{component}.{name}", settings.get(name, default))

    rank = parts["down"].shape[0]
    alpha: Any = rank
    if "alpha" in parts:
        alpha = parts["alpha"].read().item()
    elif (named := setting("lora_alpha")) is not None:
        patterns = setting("alpha_pattern") or {}
        alpha = next((a for each, a in patterns.items() if re.fullmatch(rf"(.*\.)?({each})", module)), named)
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"alpha of {module} must be a finite number, not {json.dumps(alpha, default=str)[:60]}")
    return alpha / (math.sqrt(rank) if setting("use_rslora") else rank)
