"""The state of training: which networks, which of their parameters train, where each comes from and where it lives."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array

from xpsr_jax import sharding
from xpsr_jax.config import Config, Networks
from xpsr_jax.errors import UserError
from xpsr_jax.models.controlnet import initialise_from_unet, unet_twin
from xpsr_jax.models.layers import Compute
from xpsr_jax.weights.networks import NETWORKS, read_config
from xpsr_jax.weights.rules import match, torch_key
from xpsr_jax.weights.tensors import read_finite
from xpsr_jax.weights.torch_files import read_folder

Parameters = dict[str, Array]
COMPONENTS = {"xpsr": ("unet", "controlnet", "autoencoder", "text_encoder"), "autoencoder": ("autoencoder",)}
# What Stable Diffusion's UNet lacks; it is initialised as a new UNet's (method §5).
_NEW_IN_UNET = r"\.pixel_attentions\."


class Bundle(nnx.Module):
    """The networks of a training, as attributes `unet`, `controlnet`, `autoencoder`, `text_encoder` (or some of them)."""

    def __init__(self, networks: Networks, components: tuple[str, ...], *, compute: Compute, rngs: nnx.Rngs):
        for name in components:
            options = {"with_constraint_heads": True} if name == "controlnet" else {}
            setattr(self, name, NETWORKS[name].module(getattr(networks, name), compute=compute, rngs=rngs, **options))
        if "controlnet" in components:
            initialise_from_unet(self.controlnet, self.unet)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a step changes, and what a checkpoint holds.

    Attributes:
      step: optimizer steps done.
      trained: parameters by "network.path", float32.
      optimizer: Optax's state.
      average: exponential moving average of `trained`; None without.
    """

    step: Array
    trained: Parameters
    optimizer: Any
    average: Parameters | None


@dataclass(frozen=True)
class Structure:
    """The networks without their arrays.

    Attributes:
      networks: their configurations, as found in the base folders where there are some.
      sources: component -> folder that it is loaded from.
      trained: paths of the parameters that train.
    """

    networks: Networks
    sources: Mapping[str, Path]
    graph: Any
    variables: Mapping[str, tuple[tuple[Any, ...], nnx.Variable]]
    trained: frozenset[str]
    make: Any

    def merge(self, *parameters: Mapping[str, Array]) -> Bundle:
        """The networks with these parameters, which must be all; under jit this costs nothing."""
        arrays = {path: array for part in parameters for path, array in part.items()}
        flat = [(keys, variable.replace(arrays[path])) for path, (keys, variable) in self.variables.items()]
        return nnx.merge(self.graph, nnx.from_flat_state(flat))

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {path: jax.ShapeDtypeStruct(v.shape, v.dtype) for path, (_, v) in self.variables.items()}


def make_structure(config: Config) -> Structure:
    """Resolves the networks of a config. Nothing is allocated.

    Raises:
      UserError: a component is neither in `networks.base` nor allowed to start from scratch, or a pattern of `trained` matches nothing.
    """
    components = COMPONENTS[config.stage]
    networks, sources = _resolve(config.networks, components)
    compute = Compute(
        dtype=jnp.dtype(config.precision.dtype), param_dtype=jnp.float32, attention=config.precision.attention, remat=config.precision.remat
    )
    make = functools.partial(Bundle, networks, components, compute=compute)
    graph, state = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    variables = {".".join(map(str, keys)): (keys, variable) for keys, variable in nnx.to_flat_state(state)}
    return Structure(networks, sources, graph, variables, frozenset(select(variables, config.trained)), make)


def _resolve(networks: Networks, components: tuple[str, ...]) -> tuple[Networks, dict[str, Path]]:
    sources, missing = {}, []
    for name in components:
        found = [base / NETWORKS[name].subfolder for base in networks.base if (base / NETWORKS[name].subfolder).is_dir()]
        if found:
            sources[name] = found[-1]
        elif name not in networks.from_scratch:
            missing.append(NETWORKS[name].subfolder)
    if missing:
        bases = ", ".join(map(str, networks.base)) or "none was given"
        raise UserError(
            f"the base model has no {', '.join(missing)} (networks.base: {bases}); give a Stable Diffusion folder in diffusers' layout with --networks.base"
        )
    read: dict[str, Any] = {name: read_config(NETWORKS[name], folder) for name, folder in sources.items()}
    if "unet" in read:
        read["unet"] = dataclasses.replace(read["unet"], conditional_attention=True)
    return dataclasses.replace(networks, **read), sources


def select(paths: Any, rules: tuple[tuple[str, bool], ...]) -> list[str]:
    """The paths for which the first pattern that matches says True. Raises UserError for a pattern that matches no path at all."""
    paths = list(paths)
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise UserError(f"the pattern {pattern!r} matches no parameter; parameters are called like {paths[0]!r}")
    verdicts = {path: next((chosen for pattern, chosen in rules if re.fullmatch(pattern, path)), False) for path in paths}
    return [path for path, chosen in verdicts.items() if chosen]


def initial_parameters(structure: Structure, mesh: jax.sharding.Mesh, *, seed: int, frozen_dtype: Any) -> tuple[Parameters, Parameters]:
    """(trained, frozen) parameters as training begins, each straight into its sharding (method §5).

    What the base has is loaded; a ControlNet that it lacks is copied from the UNet; the rest is initialised at random.
    """
    shapes = structure.shapes()
    shardings = sharding.parameter_shardings(shapes, mesh)
    dtypes = {path: jnp.float32 if path in structure.trained else frozen_dtype for path in shapes}
    arrays = load_parameters(structure, dtypes=dtypes, shardings=shardings)
    missing = [path for path in shapes if path not in arrays]

    @functools.partial(jax.jit, out_shardings={path: shardings[path] for path in missing})
    def fresh(key: Array) -> Parameters:
        values = nnx.to_flat_state(nnx.state(structure.make(rngs=nnx.Rngs(key))))
        return {path: value[...].astype(dtypes[path]) for keys, value in values if (path := ".".join(map(str, keys))) in missing}

    arrays |= fresh(jax.random.key(seed))
    trained = {path: array for path, array in arrays.items() if path in structure.trained}
    return trained, {path: array for path, array in arrays.items() if path not in structure.trained}


def load_parameters(
    structure: Structure, *, dtypes: Mapping[str, Any] | None = None, shardings: Mapping[str, NamedSharding] | None = None
) -> Parameters:
    """What the base folders hold, by path, with the ControlNet's copies of a loaded UNet; tensor by tensor, float32 on the host unless said otherwise."""
    shapes, arrays = structure.shapes(), {}
    for name, folder in structure.sources.items():
        network, tensors = NETWORKS[name], read_folder(folder)
        wanted = {path.removeprefix(name + "."): shape.shape for path, shape in shapes.items() if path.startswith(name + ".")}
        if name == "unet":
            wanted = {p: s for p, s in wanted.items() if torch_key(p, network.names) in tensors or not re.search(_NEW_IN_UNET, f".{p}")}
        for path, array in read_finite(match(tensors, wanted, network.names, where=folder), where=folder, dtype=jnp.float32):
            path = f"{name}.{path}"
            array = array if dtypes is None else array.astype(dtypes[path])
            arrays[path] = array if shardings is None else jax.device_put(array, shardings[path])
    if "unet" in structure.sources and "controlnet" not in structure.sources:
        for path, shape in shapes.items():
            twin = f"unet.{unet_twin(path.removeprefix('controlnet.'))}"
            if path.startswith("controlnet.") and twin in arrays and arrays[twin].shape == shape.shape:
                arrays[path] = arrays[twin] if dtypes is None else arrays[twin].astype(dtypes[path])
    return arrays


def make_optimizer(config: Config, trained: Any) -> optax.GradientTransformation:
    """AdamW over clipped gradients (method §6); `trained` are the paths."""
    settings = config.optimizer
    decayed = set(select(trained, settings.decayed))
    if settings.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0, settings.learning_rate, settings.warmup, max(config.steps, settings.warmup + 1), 0.02 * settings.learning_rate
        )
    else:
        rate = optax.warmup_constant_schedule(0.0, settings.learning_rate, settings.warmup) if settings.warmup else settings.learning_rate
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(
            rate,
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            mask=lambda parameters: {path: path in decayed for path in parameters},
        ),
    )


def initial_state(config: Config, trained: Parameters, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> TrainState:
    """The state at step 0, placed as `state_shardings` says."""

    def make(trained: Parameters) -> TrainState:
        average = None if config.optimizer.ema is None else jax.tree.map(jnp.copy, trained)
        return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained), average)

    shapes = jax.eval_shape(make, trained)
    return jax.jit(make, out_shardings=state_shardings(shapes, mesh))(trained)


def state_shardings(state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """Optimizer moments and averages live where their parameters do; the rest is on every device."""
    places = sharding.parameter_shardings(state.trained, mesh)

    def place(path: Any, leaf: Any) -> NamedSharding:
        last = path[-1]
        key = last.key if isinstance(last, jax.tree_util.DictKey) else None
        return places[key] if key in places and leaf.shape == state.trained[key].shape else sharding.replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, state)
