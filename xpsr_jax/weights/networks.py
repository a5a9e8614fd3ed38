"""One network from its folder (config.json and weights under PyTorch's names), and back."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from xpsr_jax.errors import UserError
from xpsr_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from xpsr_jax.models.controlnet import ControlNet, ControlNetConfig
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from xpsr_jax.models.unet import UNet, UNetConfig
from xpsr_jax.weights import rules
from xpsr_jax.weights.tensors import Tensor, read_finite
from xpsr_jax.weights.torch_files import STEMS, read_folder, read_json, write_folder, write_json

_HEADS = r"^conv_degradation(_mid)?\.|^controlnet_cond_embedding\.to_rgbs\."
_CONDITIONAL_ATTENTION = r"\.pixel_attentions\."


class Keys:
    """Stands in for `nnx.Rngs`, whose counter is a variable: tracing that takes time as the square of the layers."""

    def __init__(self, key: jax.Array):
        self.key, self.count = key, 0

    def params(self) -> jax.Array:
        """Another key each time, by the number of calls."""
        self.count += 1
        return jax.random.fold_in(self.key, self.count - 1)


@dataclass(frozen=True)
class Network:
    """A kind of network, here and in PyTorch.

    Attributes:
      subfolder: of a model folder.
      config, module: ours.
      names: what is particular to its keys.
      stem: what its weights' file is called.
      torch_class: library and class that model_index.json states.
    """

    subfolder: str
    config: Any
    module: Any
    names: rules.Names
    stem: str
    torch_class: tuple[str, str]


_DIFFUSERS, _TRANSFORMERS = STEMS
UNET = Network("unet", UNetConfig, UNet, rules.UNET, _DIFFUSERS, ("diffusers", "UNet2DConditionModel"))
CONTROLNET = Network(
    "controlnet", ControlNetConfig, ControlNet, rules.CONTROLNET, _DIFFUSERS, ("diffusers", "ControlNetModel")
)
AUTOENCODER = Network(
    "vae", AutoencoderConfig, Autoencoder, rules.AUTOENCODER, _DIFFUSERS, ("diffusers", "AutoencoderKL")
)
TEXT_ENCODER = Network(
    "text_encoder",
    TextEncoderConfig,
    TextEncoder,
    rules.TEXT_ENCODER,
    _TRANSFORMERS,
    ("transformers", "CLIPTextModel"),
)
# By the name of the field of `model_folder.Model`.
NETWORKS = {"unet": UNET, "controlnet": CONTROLNET, "autoencoder": AUTOENCODER, "text_encoder": TEXT_ENCODER}


def read_config(network: Network, folder: Path) -> Any:
    """The network's configuration. Raises UserError naming what our networks do not support."""
    file = folder / "config.json"
    data = read_json(file)
    try:
        return network.config.from_json(data)
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: {error}") from error


def abstract(network: Network, config: Any, *, compute: Compute | None = None, **options: Any) -> nnx.Module:
    """The network with shapes in the place of arrays: nothing is initialised or allocated.

    Raises UserError if the configuration contradicts itself.
    """

    def make() -> nnx.Module:
        return network.module(config, rngs=Keys(jax.random.key(0)), compute=compute or Compute(), **options)

    try:
        return nnx.eval_shape(make)
    except ValueError as error:
        raise UserError(f"no {network.module.__name__} can be made of this configuration: {error}") from error


def parameters(module: nnx.Module) -> dict[str, Any]:
    """The network's parameters (nnx.Param, of arrays or of shapes) by path, parts joined by "."."""
    return {".".join(map(str, path)): param for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param))}


def load_network(
    network: Network,
    folder: str | Path,
    *,
    compute: Compute | None = None,
    config: Any = None,
    with_constraint_heads: bool | None = None,
) -> Any:
    """A network with the weights of a component's folder, which are read one tensor at a time.

    Args:
      compute: its `param_dtype` is what the parameters are cast to (None: float32).
      config: to use instead of the folder's config.json.
      with_constraint_heads: of a ControlNet; None: if the file has them.

    Raises:
      WeightsError: naming every tensor that is unknown, missing or misshapen, or holds NaN or infinity.
      UserError: no such folder, or its files cannot be read or describe what our networks do not support.
    """
    folder, compute = Path(folder), compute or Compute()
    config = config or read_config(network, folder)
    tensors = read_folder(folder)
    options = {}
    if network is CONTROLNET:
        heads = rules.holds(tensors, _HEADS) if with_constraint_heads is None else with_constraint_heads
        options["with_constraint_heads"] = heads
    module = abstract(network, config, compute=compute, **options)
    shapes = {path: param.shape for path, param in parameters(module).items()}
    matched = rules.match(tensors, shapes, network.names, where=folder)
    arrays = {}
    for path, array in read_finite(matched, where=folder, dtype=compute.param_dtype):
        arrays[path] = jnp.asarray(array)
    graph, state = nnx.split(module)
    filled = [(path, param.replace(arrays[".".join(map(str, path))])) for path, param in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def save_network(
    network: Network, module: Any, folder: Path, *, dtype: Any = None, shard_bytes: int | None = None
) -> None:
    """Writes config.json and weights into an existing folder, as diffusers or transformers would.

    Raises WeightsError naming every parameter that holds NaN or infinity, or that `dtype` (None: its own) cannot hold.
    """
    config = module.config
    if network is CONTROLNET:
        heads = hasattr(module, "conv_degradation")
        rgbs = hasattr(module.controlnet_cond_embedding, "to_rgbs")
        config = dataclasses.replace(config, use_latent_pred=heads, return_rgbs=rgbs)
    write_json(config.to_json(), folder / "config.json")
    tensors = {}
    for path, param in parameters(module).items():
        key, tensor = rules.to_torch(path, Tensor.of(path, param[...]), network.names)
        tensors[key] = dataclasses.replace(tensor, name=key)
    write_folder(tensors, folder, network.stem, where=network.subfolder, dtype=dtype, shard_bytes=shard_bytes)


def checked_tensors(network: Network, folder: Path) -> dict[str, Tensor]:
    """The weights of a folder by today's keys, in PyTorch's layout, checked against what its config.json describes.

    A UNet may be Stable Diffusion's own, without Conditional Attention. Raises as `load_network`, except that NaN
    shows when the tensors are read.
    """
    config, tensors = read_config(network, folder), read_folder(folder)
    options: dict[str, Any] = {}
    if network is CONTROLNET:
        options["with_constraint_heads"] = rules.holds(tensors, _HEADS)
    if network is UNET and not rules.holds(tensors, _CONDITIONAL_ATTENTION):
        config = dataclasses.replace(config, conditional_attention=False)
    shapes = {path: param.shape for path, param in parameters(abstract(network, config, **options)).items()}
    matched = rules.match(tensors, shapes, network.names, where=folder)
    return dict(rules.to_torch(path, tensor, network.names) for path, tensor in matched.items())
