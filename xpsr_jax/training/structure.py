"""The networks of a training, where each is loaded from, and which parameters are trained. No arrays yet."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from xpsr_jax.config import Config, Networks
from xpsr_jax.errors import UserError
from xpsr_jax.models.autoencoder import Autoencoder, initialise_near_linear
from xpsr_jax.models.controlnet import ControlNet, initialise_from_unet
from xpsr_jax.models.first_stage_config import RRDBNetConfig
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.parameters import parameters, with_parameters
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.models.text_encoder import TextEncoder
from xpsr_jax.models.unet import UNet
from xpsr_jax.training.adapters import CRITIC, STUDENT, TEACHER, adapter_shapes, with_adapters
from xpsr_jax.training.discriminator import Discriminator, PatchDiscriminator
from xpsr_jax.weights import hub
from xpsr_jax.weights.model_folder import load_schedule
from xpsr_jax.weights.networks import ALL_NETWORKS, CONTROLNET, FIRST_STAGE, NETWORKS, Keys, abstract, read_config
from xpsr_jax.weights.sources import SUBFOLDERS, check_each_is_used, find_components

_ALL = ("unet", "controlnet", "autoencoder", "text_encoder")
COMPONENTS = {"xpsr": _ALL, "autoencoder": ("autoencoder",), "decoder": _ALL, "few_step": _ALL}


class Bundle(nnx.Module):
    """The networks of a training: all or some of `unet`, `controlnet` (with its heads), `autoencoder`, `text_encoder`.

    It has a `first_stage` too if the training step computes its pictures.
    """

    unet: UNet
    controlnet: ControlNet
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    first_stage: RRDBNet

    def __init__(self, configs: Mapping[str, Any], components: Sequence[str], *, compute: Compute, key: Array):
        for name in components:
            options = {"with_constraint_heads": True} if name == "controlnet" else {}
            # Each network has its own key, so its parameters do not depend on the other components.
            rngs = Keys(jax.random.fold_in(key, list(ALL_NETWORKS).index(name)))
            setattr(self, name, ALL_NETWORKS[name].module(configs[name], compute=compute, rngs=rngs, **options))
        if {"unet", "controlnet"} <= set(components):
            initialise_from_unet(self.controlnet, self.unet)
        if "autoencoder" in components:
            initialise_near_linear(self.autoencoder, jax.random.fold_in(key, len(NETWORKS)))


@dataclass(frozen=True)
class Structure:
    """The networks without their arrays. A parameter is identified by its path, "network.path".

    Attributes:
      networks: the networks' configurations. Those of the base folders override the config's.
      sources: component -> folder that it is loaded from.
      first_stage: folder of the first stage; None: the model has none.
      trained: paths of the trained parameters.
      frozen: paths of the other parameters.
      extra: parameters that belong to no network (`adapters`), with their shapes. They are in `trained` or
        `frozen` too.
      make: (components, key) -> these networks, initialised at random.
      abstract: the networks, with shapes in place of arrays.
    """

    networks: Networks
    sources: Mapping[str, Path]
    first_stage: Path | None
    trained: frozenset[str]
    frozen: frozenset[str]
    extra: Mapping[str, jax.ShapeDtypeStruct]
    make: Callable[[Sequence[str], Array], Bundle]
    abstract: Bundle

    def merge(self, *parts: Mapping[str, Array | np.ndarray]) -> Bundle:
        """The networks with these parameters. The parts together must contain every parameter of the networks.

        The student's adapters are added to their kernels. Without adapters this costs nothing under jit.
        """
        values = {path: array for part in parts for path, array in part.items()}
        return with_parameters(self.abstract, with_adapters(values, STUDENT))

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shape of every parameter, by path, as float32."""
        return parameters(self.abstract) | dict(self.extra)


def make_structure(config: Config) -> Structure:
    """Resolves the networks of a config. Nothing is allocated.

    Raises:
      UserError: a component is neither in `networks.base` nor in `networks.from_scratch`; the networks do not fit
        together; a pattern of `trained` matches nothing, or no parameter is trained.
    """
    components = COMPONENTS[config.stage]
    constrained = config.stage in ("xpsr", "few_step") and config.loss.constraint > 0
    networks, sources = _resolve(config.networks, components, constrained=constrained)
    _check_fit(networks, components, crop_size=config.data.crop_size)
    compute = compute_of(config)
    configs: dict[str, Any] = {name: getattr(networks, name) for name in NETWORKS}
    first_stage = find_first_stage(config) if "controlnet" in components else None
    computed = components
    if first_stage is not None and config.data.first_stage == "computed":
        computed, sources = (*components, "first_stage"), sources | {"first_stage": first_stage}
        configs["first_stage"] = read_first_stage(first_stage, config.data.degradation.upscale)

    def make(components: Sequence[str], key: Array) -> Bundle:
        return Bundle(configs, components, compute=compute, key=key)

    try:
        bundle = nnx.eval_shape(lambda: make(computed, jax.random.key(0)))
    except ValueError as error:
        raise UserError(f"the networks cannot be built from this configuration: {error}") from error
    shapes = parameters(bundle)
    # The first stage is never trained.
    trained = frozenset(select([path for path in shapes if not path.startswith("first_stage.")], config.trained))
    if not trained:
        raise UserError("nothing would be trained: no pattern of --trained selects a parameter (with True)")
    extra: dict[str, jax.ShapeDtypeStruct] = {}
    if config.stage == "few_step":
        extra = _extra_parameters(config, networks, shapes, trained)
        trained |= frozenset(path for path in extra if not path.startswith(TEACHER))
    elif config.loss.adversarial:
        extra = {f"{CRITIC}{path}": shape for path, shape in parameters(abstract_critic(config)).items()}
        trained |= extra.keys()
    frozen = frozenset(shapes.keys() | extra.keys()) - trained
    return Structure(networks, sources, first_stage, trained, frozen, extra, make, bundle)


def find_first_stage(config: Config) -> Path | None:
    """The folder of the first stage of a config's model; None: the model has none.

    Raises UserError if the config names a first stage that does not exist.
    """
    named = config.networks.first_stage
    if named not in ("own", "none"):
        return named_first_stage(Path(named))
    bases = [hub.local(base) for base in config.networks.base] if named == "own" else []
    held = [find_components(base) for base in bases if base.is_dir()]
    return next((each["first_stage"] for each in reversed(held) if "first_stage" in each), None)


def named_first_stage(path: Path) -> Path:
    """The folder of an ESRGAN network: the path itself or a folder in it. Raises UserError if there is none."""
    folder = hub.local(path)
    if folder.is_dir() and (found := find_components(folder).get("first_stage")):
        return found
    raise UserError(
        f"the first stage {path} is neither the folder of an ESRGAN network nor of a model that has one; convert a "
        "file with xpsr convert"
    )


def read_first_stage(folder: Path, upscale: int) -> RRDBNetConfig:
    """The configuration of a first stage. Raises UserError unless its output has the size of the HR images."""
    config = read_config(FIRST_STAGE, folder)
    if config.scale != upscale:
        raise UserError(
            f"{folder} enlarges {config.scale} times, but LR images are made {upscale} times smaller "
            "(data.degradation.upscale); use the same factor"
        )
    return config


def abstract_teacher(config: Config, networks: Networks) -> ControlNet:
    """The teacher's ControlNet, with shapes in place of arrays. It has no constraint heads."""
    return abstract(CONTROLNET, networks.controlnet, compute=compute_of(config))


def abstract_discriminator(config: Config, networks: Networks) -> Discriminator:
    """The critic of `realism="adversarial"`, with shapes in place of arrays."""
    compute = compute_of(config)
    return nnx.eval_shape(lambda: Discriminator(networks.unet, compute=compute, rngs=Keys(jax.random.key(0))))


def abstract_critic(config: Config) -> PatchDiscriminator:
    """The critic of the stage "autoencoder", with shapes in place of arrays."""
    return nnx.eval_shape(lambda: PatchDiscriminator(compute=compute_of(config), rngs=Keys(jax.random.key(0))))


def _extra_parameters(
    config: Config, networks: Networks, shapes: Mapping[str, Any], trained: frozenset[str]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The extra parameters of few-step training, in addition to the networks'.

    Raises UserError if an adapter's kernel is trained too, or is not a kernel.
    """
    settings = config.few_step
    kernels = select(shapes, settings.adapted)
    if both := trained.intersection(kernels):
        raise UserError(f"few_step.adapted: {min(both)} is trained itself; exclude it, or leave it out of --trained")
    if flat := [path for path in kernels if len(shapes[path].shape) < 2]:
        raise UserError(f"few_step.adapted: {min(flat)} is not a kernel and cannot have an adapter; exclude it")
    extra = adapter_shapes(shapes, kernels, rank=settings.rank, prefix=STUDENT)
    if not settings.has_critic:
        return extra
    if settings.realism == "distribution":
        extra |= adapter_shapes(shapes, kernels, rank=settings.rank, prefix=CRITIC)
    else:
        discriminator = parameters(abstract_discriminator(config, networks))
        extra |= {f"{CRITIC}{path}": shape for path, shape in discriminator.items()}
    # Only the student has the constraint's heads.
    held = {f"controlnet.{path}" for path in parameters(abstract_teacher(config, networks))}
    copied = sorted(path for path in trained if path in held or not path.startswith("controlnet."))
    return extra | {f"{TEACHER}{path}": shapes[path] for path in copied}


def compute_of(config: Config) -> Compute:
    """The precision, attention kernel and rematerialisation of a training's networks."""
    return Compute(
        dtype=jnp.dtype(config.precision.dtype),
        param_dtype=jnp.float32,
        attention=config.precision.attention,
        remat=config.precision.remat,
    )


def select(paths: Iterable[str], rules: tuple[tuple[str, bool], ...]) -> list[str]:
    """The paths whose first matching pattern has the value True.

    Raises UserError for a pattern that matches no path at all.
    """
    paths = list(paths)
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise UserError(f"the pattern {pattern!r} matches no parameter; parameters have names like {min(paths)!r}")
    verdicts = {
        path: next((chosen for pattern, chosen in rules if re.fullmatch(pattern, path)), False) for path in paths
    }
    return [path for path, chosen in verdicts.items() if chosen]


def _resolve(networks: Networks, components: tuple[str, ...], *, constrained: bool) -> tuple[Networks, dict[str, Path]]:
    """The configurations to use, and the folders that components are loaded from.

    For the parts that XPSR adds to a base, the config overrides the base: Conditional Attention and, if the
    constraint is used, its heads.
    """
    folders = [hub.local(base) for base in networks.base]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"the base model {folder} does not exist; name its folder with --networks.base")
    if unknown := set(networks.from_scratch) - set(NETWORKS):
        raise UserError(
            f"networks.from_scratch: there is no network {', '.join(unknown)}; use some of {', '.join(NETWORKS)}"
        )
    held = [find_components(folder) for folder in folders]
    check_each_is_used(
        networks.base, [each.keys() & {*components, "schedule", "tokenizer", "first_stage"} for each in held]
    )
    found = {name: folder for each in held for name, folder in each.items()}
    if missing := [name for name in components if name not in found and name not in networks.from_scratch]:
        absent = ", ".join(f"{SUBFOLDERS[name]}/" for name in missing)
        bases = ", ".join(map(str, networks.base)) or "none was given"
        raise UserError(
            f"the base model has no {absent} (networks.base: {bases}). Name a Stable Diffusion folder in diffusers' "
            f"layout with --networks.base, or train from scratch with --networks.from-scratch {' '.join(missing)}"
        )
    sources = {name: found[name] for name in components if name in found}
    read: dict[str, Any] = {name: read_config(NETWORKS[name], folder) for name, folder in sources.items()}
    if "unet" in read:
        read["unet"] = dataclasses.replace(read["unet"], conditional_attention=networks.unet.conditional_attention)
    if "controlnet" in read and constrained:
        heads = {name: getattr(networks.controlnet, name) for name in ("return_rgbs", "use_latent_pred")}
        read["controlnet"] = dataclasses.replace(read["controlnet"], **heads)
    if "schedule" in found:
        read["schedule"] = load_schedule(found["schedule"])
    return dataclasses.replace(networks, **read), sources


def _check_fit(networks: Networks, components: tuple[str, ...], *, crop_size: int) -> None:
    """Raises UserError if the networks cannot work together. Otherwise it would be a shape error inside a network."""
    factor = 2 ** (len(networks.autoencoder.block_out_channels) - 1)
    if crop_size % factor:
        raise UserError(f"data.crop_size={crop_size} must be a multiple of {factor}, the side of a latent in pixels")
    if components != _ALL:
        return
    unet, controlnet, text = networks.unet, networks.controlnet, networks.text_encoder
    channels, stages = networks.autoencoder.latent_channels, len(controlnet.conditioning_embedding_out_channels)
    pairs = [
        ("unet.in_channels", unet.in_channels, "autoencoder.latent_channels", channels),
        ("unet.out_channels", unet.out_channels, "autoencoder.latent_channels", channels),
        ("controlnet.in_channels", controlnet.in_channels, "autoencoder.latent_channels", channels),
        ("controlnet features", controlnet.feature_channels, "unet features", unet.feature_channels),
        ("unet.cross_attention_dim", unet.cross_attention_dim, "text_encoder.hidden_size", text.hidden_size),
        (
            "controlnet.cross_attention_dim",
            controlnet.cross_attention_dim,
            "text_encoder.hidden_size",
            text.hidden_size,
        ),
        ("image size over the ControlNet's", 2 ** (stages - 1), "image size over the autoencoder's latents", factor),
    ]
    for name, value, other_name, other in pairs:
        if value != other:
            raise UserError(f"the networks do not fit: {name} is {value}, but {other_name} is {other}")
