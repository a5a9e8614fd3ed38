"""Puts XPSR on another Stable Diffusion 1.5: trained tensors are kept, frozen ones come from the other checkpoint."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xpsr_jax.errors import UserError
from xpsr_jax.models.configs import UNetConfig
from xpsr_jax.weights import hub, rules
from xpsr_jax.weights.networks import CONDITIONAL_ATTENTION, NETWORKS, UNET, Weights, checked, parse_config
from xpsr_jax.weights.sources import SUBFOLDERS, Source, open_source
from xpsr_jax.weights.tensors import Tensor

# Frozen in XPSR's training, in addition to most of the UNet.
_FROZEN = ("autoencoder", "text_encoder")
# Fields of a UNet's configuration that do not change its results, or are compared separately.
_NOT_COMPARED = {
    "sample_size",
    "conditional_attention",
    "upcast_attention",
    "attention_head_dim",
    "num_attention_heads",
}


def with_other_base(source: Source, path: str | Path, *, variant: str | None = None, ema: bool = False) -> Source:
    """Replaces every frozen tensor of a source by another checkpoint's: in UNet, autoencoder and text encoder.

    The ControlNet and the UNet's Conditional Attention are kept. Tokenizer and schedule are replaced only if the
    source has none.

    Args:
      source: XPSR's weights.
      path: the other checkpoint: a folder, a single file, or a model on the hub.
      variant, ema: as in `open_source`, for the other checkpoint.

    Raises:
      UserError: the source is not XPSR, the other checkpoint is not Stable Diffusion 1.5 (inpainting, XL and others are
        named), or their networks have different sizes.
    """
    if "unet" not in source.networks:
        raise UserError("--base-unet keeps the Conditional Attention of XPSR's UNet: name XPSR's folder as a source")
    ours = source.networks["unet"]()
    if not rules.holds(ours.tensors, CONDITIONAL_ATTENTION):
        raise UserError(
            f"{ours.where} has no Conditional Attention: --base-unet needs XPSR's own UNet among the sources"
        )
    other = open_source(Path(path), variant=variant, ema=ema)
    if "unet" not in other.networks:
        found = ", ".join(f"{SUBFOLDERS[name]}/" for name in other.origins) or "nothing"
        raise UserError(f"{path} has no unet/, which --base-unet needs; it has {found}")
    theirs = other.networks["unet"]()
    _check_kind(theirs, path)
    _check_same(parse_config(UNET, ours.config, ours.where), parse_config(UNET, theirs.config, theirs.where), path)
    trained = {key: tensor for key, tensor in _by_key(ours).items() if rules.holds([key], CONDITIONAL_ATTENTION)}
    frozen = {key: tensor for key, tensor in _by_key(theirs).items() if key not in trained}
    merged = frozen | trained
    networks = dict(source.networks)
    networks["unet"] = functools.partial(Weights, ours.where, ours.config, merged)
    origins = dict(source.origins)
    taken = ["unet"]
    for name in _FROZEN:
        if name in other.networks:
            if name in source.networks:
                _check_component(name, source.networks[name](), other.networks[name]())
            networks[name], origins[name] = other.networks[name], other.origins[name]
            taken.append(name)
    for name in ("tokenizer", "schedule"):
        if name in other.origins and name not in source.origins:
            origins[name] = other.origins[name]
    names = ", ".join(f"{SUBFOLDERS[name]}/" for name in taken)
    line = f"frozen tensors of {path}: {len(frozen)} of unet/, with {len(trained)} trained ones kept; replaced: {names}"
    return dataclasses.replace(
        source,
        origins=origins,
        networks=networks,
        tokenizer=source.tokenizer or other.tokenizer,
        schedule=source.schedule or other.schedule,
        history=(*source.history, line),
        also_read=(*source.also_read, hub.local(path)),
    )


def _by_key(unet: Weights) -> dict[str, Tensor]:
    """The UNet's tensors, checked, by their current keys."""
    return dict(rules.to_torch(path, tensor, UNET.names) for path, tensor in checked(UNET, unet)[1].items())


def _check_kind(weights: Weights, path: str | Path) -> None:
    """Raises UserError naming the kind of a UNet that is not Stable Diffusion 1's."""
    config: Mapping[str, Any] = weights.config
    channels = config.get("in_channels", UNetConfig.in_channels)
    if config.get("addition_embed_type") == "text_time" or config.get("cross_attention_dim") == 2048:
        raise UserError(f"{path} is Stable Diffusion XL; XPSR's ControlNet is for Stable Diffusion 1.5")
    if channels == 9:
        raise UserError(
            f"{path} is an inpainting model: its UNet has 9 input channels, 5 of them for a mask and the masked image; "
            "name the plain model"
        )
    if channels == 8:
        raise UserError(f"{path} is an InstructPix2Pix model: its UNet has 8 input channels, not 4")
    if channels != UNetConfig.in_channels:
        raise UserError(f"{path} is not Stable Diffusion 1.5: its UNet has {channels} input channels, not 4")


def _check_same(ours: UNetConfig, theirs: UNetConfig, path: str | Path) -> None:
    """Raises UserError naming the differences between two UNets."""
    names = [field.name for field in dataclasses.fields(UNetConfig) if field.name not in _NOT_COMPARED]
    if differing := [name for name in [*names, "heads"] if getattr(ours, name) != getattr(theirs, name)]:
        values = "; ".join(f"{n} {getattr(theirs, n)} instead of {getattr(ours, n)}" for n in differing)
        other = " (like Stable Diffusion 2)" if theirs.cross_attention_dim == 1024 else ""
        raise UserError(f"{path} is not the kind of model that XPSR was trained on{other}: {values}")


def _check_component(name: str, ours: Weights, theirs: Weights) -> None:
    """Raises UserError naming the differences between two configurations of a component."""
    network = NETWORKS[name]
    a, b = parse_config(network, ours.config, ours.where), parse_config(network, theirs.config, theirs.where)
    fields = [field.name for field in dataclasses.fields(a) if field.name not in ("sample_size", "scaling_factor")]
    if differing := [
        f"{n} {getattr(b, n)} instead of {getattr(a, n)}" for n in fields if getattr(a, n) != getattr(b, n)
    ]:
        raise UserError(f"{theirs.where}: its {SUBFOLDERS[name]}/ differs from {ours.where}: {'; '.join(differing)}")
