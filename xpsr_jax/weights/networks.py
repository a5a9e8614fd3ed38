"""Loads one network from its weights with PyTorch's names, and writes it back."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from xpsr_jax import sharding
from xpsr_jax.errors import UserError
from xpsr_jax.json_files import read_json, write_json
from xpsr_jax.models.autoencoder import Autoencoder
from xpsr_jax.models.configs import AutoencoderConfig, ControlNetConfig, TextEncoderConfig, UNetConfig
from xpsr_jax.models.controlnet import ControlNet
from xpsr_jax.models.first_stage_config import RRDBNetConfig
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.parameters import parameters, with_parameters
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.models.text_encoder import TextEncoder
from xpsr_jax.models.unet import UNet
from xpsr_jax.weights import orbax_files, rules
from xpsr_jax.weights.folders import read_folder
from xpsr_jax.weights.tensors import Tensor, WeightsError, read_finite
from xpsr_jax.weights.torch_files import STEMS, write_folder

# Keys that a file may lack altogether: Stable Diffusion's UNet has no Conditional Attention, and only training needs
# the Degradation-Free Constraint's heads.
CONSTRAINT_HEADS = r"^conv_degradation(_mid)?\.|^controlnet_cond_embedding\.to_rgbs\."
CONDITIONAL_ATTENTION = r"\.pixel_attentions\."
# Fields that only diffusers' Flax models had in config.json. They change no result.
_FLAX_ONLY = {"dtype", "use_memory_efficient_attention", "split_head_dim", "sample_size"}


class Keys(nnx.Rngs):
    """`nnx.Rngs` without a counter variable, whose tracing time grows with the square of the number of layers."""

    def __init__(self, key: jax.Array):
        self.key, self.count = nnx.data(key), 0

    def params(self) -> jax.Array:
        """A new key for each call, made from the number of calls."""
        self.count += 1
        return jax.random.fold_in(self.key, self.count - 1)


AnyConfig = UNetConfig | ControlNetConfig | AutoencoderConfig | TextEncoderConfig | RRDBNetConfig
AnyNetwork = UNet | ControlNet | Autoencoder | TextEncoder | RRDBNet
C = TypeVar("C", bound=AnyConfig)
M = TypeVar("M", bound=AnyNetwork)


@dataclass(frozen=True)
class Network(Generic[C, M]):
    """A kind of network, here and in PyTorch.

    Attributes:
      subfolder: its subfolder in a model folder.
      config, module: our classes.
      names: special rules for its keys.
      stem: file name of its weights, without the extension.
      torch_class: library and class in model_index.json.
    """

    subfolder: str
    config: type[C]
    module: Callable[..., M]
    names: rules.Names
    stem: str
    torch_class: tuple[str, str]


_DIFFUSERS, _TRANSFORMERS = STEMS
UNET = Network("unet", UNetConfig, UNet, rules.UNET_NAMES, _DIFFUSERS, ("diffusers", "UNet2DConditionModel"))
CONTROLNET = Network(
    "controlnet", ControlNetConfig, ControlNet, rules.CONTROLNET_NAMES, _DIFFUSERS, ("diffusers", "ControlNetModel")
)
AUTOENCODER = Network(
    "vae", AutoencoderConfig, Autoencoder, rules.AUTOENCODER_NAMES, _DIFFUSERS, ("diffusers", "AutoencoderKL")
)
TEXT_ENCODER = Network(
    "text_encoder",
    TextEncoderConfig,
    TextEncoder,
    rules.TEXT_ENCODER_NAMES,
    _TRANSFORMERS,
    ("transformers", "CLIPTextModel"),
)
FIRST_STAGE = Network(
    "first_stage", RRDBNetConfig, RRDBNet, rules.FIRST_STAGE_NAMES, _DIFFUSERS, ("basicsr", "RRDBNet")
)
# The networks of every model, by the name of the field of `model_folder.Model`.
NETWORKS: dict[str, Network[Any, Any]] = {
    "unet": UNET,
    "controlnet": CONTROLNET,
    "autoencoder": AUTOENCODER,
    "text_encoder": TEXT_ENCODER,
}
# With the optional one.
ALL_NETWORKS: dict[str, Network[Any, Any]] = NETWORKS | {"first_stage": FIRST_STAGE}


@dataclass(frozen=True)
class Weights:
    """A network's weights from a file or folder of any format.

    Attributes:
      where: the file or folder, for messages.
      config: content of its config.json.
      tensors: in PyTorch's layout, by PyTorch's keys, current or old.
      checkpoint: Orbax folder of the same weights, which can be restored directly into shardings.
    """

    where: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    checkpoint: Path | None = None


def open_folder(network: Network[Any, Any], folder: Path, *, variant: str | None = None) -> Weights:
    """Opens a component's folder. Raises UserError if a file is missing, broken or not safe to read."""
    checkpoint = folder / orbax_files.FOLDER
    tensors = read_folder(folder, network.names, variant=variant)
    return Weights(folder, read_json(folder / "config.json"), tensors, checkpoint if checkpoint.is_dir() else None)


def read_config(network: Network[C, M], folder: Path) -> C:
    """The network's configuration in a folder. Raises UserError naming every setting that is not supported."""
    return parse_config(network, read_json(folder / "config.json"), folder / "config.json")


def parse_config(network: Network[C, M], data: Mapping[str, Any], where: object) -> C:
    """The configuration in a config.json. Raises UserError naming every setting that is not supported."""
    if str(data.get("_class_name", "")).startswith("Flax"):
        surplus = _FLAX_ONLY - {field.name for field in dataclasses.fields(network.config)}
        data = {key: value for key, value in data.items() if key not in surplus}
    try:
        return cast(C, network.config.from_json(data))
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error


def abstract(network: Network[C, M], config: C, *, compute: Compute | None = None, **options: Any) -> M:
    """The network with shapes instead of arrays: nothing is initialised or allocated.

    Raises UserError if the configuration contradicts itself.
    """

    def make() -> M:
        return network.module(config, rngs=Keys(jax.random.key(0)), compute=compute or Compute(), **options)

    try:
        return nnx.eval_shape(make)
    except ValueError as error:
        raise UserError(f"no {network.module.__name__} can be built from this configuration: {error}") from error


def load_network(
    network: Network[C, M],
    source: str | Path | Weights,
    *,
    compute: Compute | None = None,
    config: C | None = None,
    with_constraint_heads: bool | None = None,
    mesh: jax.sharding.Mesh | None = None,
    shapes_only: bool = False,
) -> M:
    """Builds a network with the weights of a component's folder, which are read one tensor at a time.

    Args:
      source: the folder, or its opened weights.
      compute: the parameters are cast to its `param_dtype` (None: float32).
      config: used instead of the folder's config.json.
      with_constraint_heads: for a ControlNet, whether to build the heads; None: if the file has them.
      mesh: devices to split the parameters over (`sharding.parameter_shardings`); None: the first device. Each process
        reads only its own part of an Orbax checkpoint.
      shapes_only: build the network with shapes instead of arrays. Only the headers of the files are read.

    Raises:
      WeightsError: lists every tensor that is unknown, missing, has a wrong shape, or holds NaN or infinity.
      UserError: the folder does not exist, its files cannot be read, or its configuration is not supported.
    """
    weights = source if isinstance(source, Weights) else open_folder(network, Path(source))
    compute, where = compute or Compute(), weights.where
    config = config or parse_config(network, weights.config, where)
    module, tensors = _fitted(network, weights, config, compute, with_constraint_heads)
    if shapes_only:
        return module
    structs = {path: jax.ShapeDtypeStruct(x.shape, compute.param_dtype) for path, x in parameters(module).items()}
    shardings = _shardings(structs, mesh)
    arrays: dict[str, Any] = {}
    if weights.checkpoint is not None:
        placed = {path: struct.update(sharding=shardings[path]) for path, struct in structs.items()}
        arrays = _all_finite(orbax_files.restore(weights.checkpoint, placed), where)
    else:
        dtype = jnp.dtype(compute.param_dtype)
        for path, array in read_finite(tensors, where=where, dtype=dtype):
            arrays[path] = jnp.asarray(array) if mesh is None else sharding.place(array, shardings[path], dtype)
    return with_parameters(module, arrays)


def save_network(
    network: Network[Any, Any],
    module: AnyNetwork,
    folder: Path,
    *,
    dtype: DTypeLike | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Writes config.json and weights into an existing folder, as diffusers or transformers would.

    Raises WeightsError naming every parameter that holds NaN or infinity, or that `dtype` (None: its own) cannot hold.
    """
    weights = as_weights(network, module, where=Path(network.subfolder))
    write_json(weights.config, folder / "config.json")
    write_folder(weights.tensors, folder, network.stem, where=weights.where, dtype=dtype, shard_bytes=shard_bytes)


def as_weights(network: Network[Any, Any], module: AnyNetwork, *, where: Path) -> Weights:
    """The weights of a network in memory, with PyTorch's names and layout."""
    config: AnyConfig = module.config
    if isinstance(module, ControlNet):
        heads, rgbs = hasattr(module, "conv_degradation"), hasattr(module.controlnet_cond_embedding, "to_rgbs")
        config = dataclasses.replace(module.config, use_latent_pred=heads, return_rgbs=rgbs)
    tensors = {}
    for path, array in parameters(module).items():
        key, tensor = rules.to_torch(path, Tensor.of(path, array), network.names)
        tensors[key] = dataclasses.replace(tensor, name=key)
    return Weights(where, config.to_json(), tensors)


def checked(network: Network[C, M], weights: Weights) -> tuple[C, dict[str, Tensor]]:
    """The configuration, and the tensors by our paths and in our layout. They fit the configuration exactly.

    A UNet may be Stable Diffusion's own, without Conditional Attention. Raises the errors of `load_network`, except
    that NaN is found only when the tensors are read.
    """
    config = parse_config(network, weights.config, weights.where)
    if isinstance(config, UNetConfig) and not rules.holds(weights.tensors, CONDITIONAL_ATTENTION):
        config = dataclasses.replace(config, conditional_attention=False)
    return config, _fitted(network, weights, config, Compute(), None)[1]


def _fitted(
    network: Network[C, M], weights: Weights, config: C, compute: Compute, with_constraint_heads: bool | None
) -> tuple[M, dict[str, Tensor]]:
    """The abstract network for this configuration, and its tensors by our paths and in our layout."""
    options = {}
    if network is CONTROLNET:
        if with_constraint_heads is None:
            with_constraint_heads = rules.holds(weights.tensors, CONSTRAINT_HEADS)
        options["with_constraint_heads"] = with_constraint_heads
    module = abstract(network, config, compute=compute, **options)
    shapes = {path: struct.shape for path, struct in parameters(module).items()}
    return module, rules.match(weights.tensors, shapes, network.names, where=weights.where)


def _shardings(structs: Mapping[str, jax.ShapeDtypeStruct], mesh: jax.sharding.Mesh | None) -> dict[str, Any]:
    if mesh is None:
        return dict.fromkeys(structs, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    return dict(sharding.parameter_shardings(structs, mesh))


def _all_finite(arrays: dict[str, jax.Array], where: object) -> dict[str, jax.Array]:
    """Raises WeightsError naming every array with NaN or infinity, on whichever device its parts are."""
    finite = jax.jit(lambda arrays: {path: jnp.isfinite(array).all() for path, array in arrays.items()})(arrays)
    if problems := [f"NaN or infinity: in {path} {arrays[path].shape}" for path, fine in finite.items() if not fine]:
        raise WeightsError(where, problems)
    return arrays
