"""Reads Stable Diffusion from one file, `.safetensors` or `.ckpt`, with the names of its original code (LDM).

Versions 1 and 2 are supported. The file has no configuration. Sizes are taken from the shapes of its tensors. Heads and
activations, which the shapes do not show, are those of the version.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.errors import UserError, listed
from xpsr_jax.weights.pickles import PICKLES, read_pickle
from xpsr_jax.weights.tensors import Tensor, without_shared_prefix
from xpsr_jax.weights.torch_files import read_file

T = TypeVar("T")

SUFFIXES = (".safetensors", *PICKLES)
_UNET, _EMA, _VAE = "model.diffusion_model.", "model_ema.", "first_stage_model."
_TEXT_1, _TEXT_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
# A file of the autoencoder alone, with or without its prefix. "loss." is from its training.
_VAE_ALONE = (_VAE, "encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "loss.")
# Ignored tensors: the averaged UNet (unless requested), the schedule's tables, and parts of CLIP's training.
_SKIPPED = re.compile(
    rf"{re.escape(_EMA)}.*|(alphas_cumprod|betas|sqrt_|log_one_minus|posterior_|lvlb_weights|logvar|scale_factor)\w*"
    r"|first_stage_model\.loss\..*|cond_stage_model\.(model\.(text_projection|logit_scale|attn_mask)|logit_scale)"
)
# The noise schedule of Stable Diffusion 1. Version 2 has two schedules, which differ in what the UNet predicts.
SCHEDULE_1 = Schedule()

# (pattern, PyTorch's name), applied in order to keys without the network's prefix.
_RESNET = (
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".time_emb_proj."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".conv_shortcut."),
)
_UNET_ENDS = (
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^input_blocks\.0\.0\.", "conv_in."),
    (r"^middle_block\.0\.", "mid_block.resnets.0."),
    (r"^middle_block\.1\.", "mid_block.attentions.0."),
    (r"^middle_block\.2\.", "mid_block.resnets.1."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.", "conv_out."),
)
_AUTOENCODER = (
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.(q|k|v)\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
_OPEN_CLIP = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
)


@dataclass(frozen=True)
class SingleFile:
    """The content of a single file.

    Attributes:
      version: version of Stable Diffusion, 1 or 2.
      networks: for each field of `Model` that the file has: the config.json, and the tensors by the current keys of
        diffusers and transformers.
    """

    version: int
    networks: Mapping[str, tuple[dict[str, Any], dict[str, Tensor]]]


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A file's tensors by its own names. Their data are read later. Raises UserError if the file cannot be read."""
    return read_file(file) if file.suffix == ".safetensors" else read_pickle(file)


def read_single_file(file: Path, tensors: Mapping[str, Tensor], *, ema: bool = False) -> SingleFile:
    """The networks of a file.

    Args:
      tensors: the file's tensors, from `read_tensors`.
      ema: read the moving average of the UNet, which training checkpoints have in addition to the trained UNet.

    Raises:
      UserError: it is not a Stable Diffusion file, or it holds unknown tensors, which are named.
    """
    if any(key.startswith("conditioner.embedders.") or ".label_emb." in key for key in tensors):
        raise UserError(f"{file} is Stable Diffusion XL or a later one; only versions 1 and 2 can be read")
    tensors = without_shared_prefix(tensors, file, known=(_UNET, _VAE, _EMA, _TEXT_1, _TEXT_2, *_VAE_ALONE))
    if all(key.startswith(_VAE_ALONE) for key in tensors):
        # A file of the autoencoder alone has the same names without the prefix.
        tensors = {key if key.startswith(_VAE) else f"{_VAE}{key}": tensor for key, tensor in tensors.items()}
        if f"{_VAE}encoder.down.0.block.0.conv2.weight" not in tensors:
            raise UserError(f"{file} is the file of one component: name its folder, which has a config.json")
        return SingleFile(1, {"autoencoder": _whole(file, lambda: _autoencoder(_under(tensors, _VAE)))})
    if not any(key.startswith(_UNET) for key in tensors):
        found = ", ".join(sorted({key.partition(".")[0] for key in tensors})[:8])
        raise UserError(f"{file} is not a Stable Diffusion checkpoint: expected {_UNET}*, found {found}")
    parts = {prefix: _under(tensors, prefix) for prefix in (_UNET, _VAE, _TEXT_1, _TEXT_2)}
    known = {f"{prefix}{key}" for prefix, part in parts.items() for key in part}
    if unknown := [key for key in tensors if key not in known and not _SKIPPED.fullmatch(key)]:
        raise UserError(f"{file} holds tensors of an unknown network: {listed(unknown)}")
    unet = _averaged(file, tensors, parts[_UNET]) if ema else parts[_UNET]

    def networks() -> SingleFile:
        # Version 2 has another text encoder, and linear layers instead of pointwise convolutions.
        version = 2 if parts[_TEXT_2] or len(unet["middle_block.1.proj_in.weight"].shape) == 2 else 1
        networks = {"unet": _unet(unet, version)}
        if parts[_VAE]:
            networks["autoencoder"] = _autoencoder(parts[_VAE])
        if parts[_TEXT_1]:
            networks["text_encoder"] = _text_encoder(parts[_TEXT_1], "quick_gelu")
        elif parts[_TEXT_2]:
            networks["text_encoder"] = _text_encoder(_open_clip(parts[_TEXT_2]), "gelu")
        return SingleFile(version, networks)

    return _whole(file, networks)


def _whole(file: Path, read: Callable[[], T]) -> T:
    """Calls `read`. Raises UserError if it fails because the file is incomplete."""
    try:
        return read()
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} is not a complete checkpoint of Stable Diffusion 1 or 2: {error}") from error


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix) and not _SKIPPED.fullmatch(key)
    }


def _averaged(file: Path, tensors: Mapping[str, Tensor], unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The moving average of the UNet. Its names in the file have no dots."""
    names = {key: f"{_EMA}diffusion_model{key.replace('.', '')}" for key in unet}
    if missing := [name for name in names.values() if name not in tensors]:
        raise UserError(f"{file} has no moving average of its UNet: no {missing[0]} (and {len(missing) - 1} more)")
    return {key: tensors[name] for key, name in names.items()}


def _renamed(key: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _unet(tensors: dict[str, Tensor], version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    # A level consists of its layers and a halving. The last level has no halving.
    inputs = 1 + max(_indices(tensors, r"input_blocks\.(\d+)\."))
    halvings = sorted(_indices(tensors, r"input_blocks\.(\d+)\.0\.op\."))
    layers = halvings[0] - 1 if halvings else inputs - 1
    levels = len(halvings) + 1
    attended = _indices(tensors, r"input_blocks\.(\d+)\.1\.transformer_blocks\.")
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    widths = [tensors[f"input_blocks.{first}.0.out_layers.3.weight"].shape[0] for first in firsts]
    has_text = [first in attended for first in firsts]
    mid = "middle_block.1."
    text = tensors[f"{mid}transformer_blocks.0.attn2.to_k.weight"].shape[1]
    config = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in has_text],
        "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(has_text)],
        "cross_attention_dim": text,
        "transformer_layers_per_block": 1 + max(_indices(tensors, rf"{re.escape(mid)}transformer_blocks\.(\d+)\.")),
        # Version 1 has 8 heads. Version 2 has heads of 64 channels.
        "attention_head_dim": 8 if version == 1 else [width // 64 for width in widths],
        "use_linear_projection": len(tensors[f"{mid}proj_in.weight"].shape) == 2,
        "sample_size": 64,
    }

    def name(key: str) -> str:
        if found := re.fullmatch(r"input_blocks\.(\d+)\.([01])\.(.*)", key):
            block, part, rest = int(found[1]), found[2], found[3]
            if block == 0:
                return _renamed(key, _UNET_ENDS)
            level, layer = divmod(block - 1, layers + 1)
            if rest.startswith("op."):
                return f"down_blocks.{level}.downsamplers.0.conv.{rest.removeprefix('op.')}"
            kind = "attentions" if part == "1" else "resnets"
            return _renamed(f"down_blocks.{level}.{kind}.{layer}.{rest}", _RESNET)
        if found := re.fullmatch(r"output_blocks\.(\d+)\.([012])\.(.*)", key):
            level, layer = divmod(int(found[1]), layers + 1)
            if found[3].startswith("conv."):
                return f"up_blocks.{level}.upsamplers.0.{found[3]}"
            kind = "resnets" if found[2] == "0" else "attentions"
            return _renamed(f"up_blocks.{level}.{kind}.{layer}.{found[3]}", _RESNET)
        return _renamed(key, (*_UNET_ENDS, *_RESNET))

    return config, _rename(tensors, name)


def _autoencoder(tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    levels = 1 + max(_indices(tensors, r"encoder\.down\.(\d+)\."))
    config = {
        "_class_name": "AutoencoderKL",
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "latent_channels": tensors["post_quant_conv.weight"].shape[0],
        "block_out_channels": [tensors[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": 1 + max(_indices(tensors, r"encoder\.down\.0\.block\.(\d+)\.")),
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }

    def name(key: str) -> str:
        # The file counts the decoder's levels from the finest, diffusers from the coarsest.
        key = re.sub(r"^decoder\.up\.(\d+)\.", lambda found: f"decoder.up.{levels - 1 - int(found[1])}.", key)
        return _renamed(key, _AUTOENCODER)

    return config, _rename(tensors, name)


def _text_encoder(tensors: dict[str, Tensor], activation: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = _rename(tensors, lambda key: key if key.startswith("text_model.") else f"text_model.{key}")
    words, width = tensors["text_model.embeddings.token_embedding.weight"].shape
    config = {
        "architectures": ["CLIPTextModel"],
        "vocab_size": words,
        "hidden_size": width,
        "max_position_embeddings": tensors["text_model.embeddings.position_embedding.weight"].shape[0],
        "intermediate_size": tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": 1 + max(_indices(tensors, r"text_model\.encoder\.layers\.(\d+)\.")),
        "num_attention_heads": max(1, width // 64),
        "hidden_act": activation,
    }
    return config, tensors


def _open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's text encoder with CLIP's names. The last layer is left out: version 2 uses the features before it."""
    last = max(_indices(tensors, r"transformer\.resblocks\.(\d+)\."))
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"transformer.resblocks.{last}.")}

    def renamed() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in kept.items():
            name = _renamed(key, _OPEN_CLIP)
            if fused := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name):
                width = tensor.shape[0] // 3
                for i, part in enumerate("qkv"):
                    yield f"{fused[1]}.self_attn.{part}_proj.{fused[2]}", tensor.rows(i * width, (i + 1) * width)
            else:
                yield name, tensor

    return dict(renamed())


def _rename(tensors: Mapping[str, Tensor], name: Callable[[str], str]) -> dict[str, Tensor]:
    """Renames the tensors. Raises ValueError if two get the same name."""
    renamed = {name(key): tensor for key, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        twice = [key for key, tensor in tensors.items() if renamed[name(key)] is not tensor]
        raise ValueError(f"present twice: {listed(twice)}")
    return renamed


def _indices(tensors: Iterable[str], pattern: str) -> set[int]:
    """The numbers that a pattern captures at the beginning of keys."""
    return {int(found[1]) for key in tensors if (found := re.match(pattern, key))}
