"""The parameters as training begins: loaded, copied or random (method §5), each straight into its sharding."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array

from xpsr_jax import sharding
from xpsr_jax.models.controlnet import unet_twin
from xpsr_jax.models.parameters import parameters
from xpsr_jax.training.adapters import CRITIC, STUDENT, TEACHER, initial_adapter
from xpsr_jax.training.fingerprints import Fingerprint
from xpsr_jax.training.structure import Structure
from xpsr_jax.weights.networks import ALL_NETWORKS, CONDITIONAL_ATTENTION, CONSTRAINT_HEADS, checked, open_folder
from xpsr_jax.weights.rules import holds, match, torch_key
from xpsr_jax.weights.tensors import read_finite

Parameters = dict[str, Array]
# What a base may lack as a whole is initialised as in a new network (method §5).
_MAY_LACK = {"unet": CONDITIONAL_ATTENTION, "controlnet": CONSTRAINT_HEADS}


def initial_parameters(
    structure: Structure,
    paths: Collection[str],
    shardings: Mapping[str, NamedSharding],
    *,
    seed: int,
    frozen_dtype: DTypeLike = jnp.float32,
    fingerprints: dict[str, str] | None = None,
) -> Parameters:
    """Parameters at the start of training: float32 those that train, `frozen_dtype` the others.

    What the base has is loaded; a ControlNet that it lacks is copied from its UNet; the rest is initialised at random.

    Args:
      fingerprints: see `load_parameters`.
    """
    dtypes = {path: jnp.dtype(jnp.float32 if path in structure.trained else frozen_dtype) for path in paths}

    def put(path: str, array: np.ndarray) -> Array:
        return sharding.place(array, shardings[path], dtypes[path])

    arrays = load_parameters(structure, paths, put, fingerprints=fingerprints)
    missing = [path for path in paths if path not in arrays]
    return arrays | {path: put(path, array) for path, array in random_parameters(structure, missing, seed).items()}


def random_parameters(structure: Structure, paths: Collection[str], seed: int) -> dict[str, np.ndarray]:
    """Random initial values, made on the CPU (`sharding.host`): the same whatever the mesh.

    Operation by operation, each compiled once for a shape: as one program a network takes minutes to compile.
    """
    adapters = {
        path: initial_adapter(path, structure.beside[path].shape, seed)
        for path in paths
        if path.startswith((STUDENT, CRITIC))
    }
    # The teacher is what the student begins as.
    names = {path: path.removeprefix(TEACHER) for path in paths if path not in adapters}
    components = sorted({name.partition(".")[0] for name in names.values()})
    if "controlnet" in components and "unet" not in structure.sources:
        components = sorted({*components, "unet"})  # It begins as its copy.
    with jax.default_device(sharding.host()):
        values = parameters(structure.make(components, jax.random.key(seed)))
    return adapters | {path: np.asarray(values[name]) for path, name in names.items()}


def load_parameters(
    structure: Structure,
    paths: Collection[str],
    put: Callable[[str, np.ndarray], Any] = lambda path, array: array,
    *,
    fingerprints: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What the base folders hold of `paths`, tensor by tensor, with the ControlNet's copies of a loaded UNet.

    Args:
      put: what to do with a path's array, which is float32 and on the host.
      fingerprints: takes up those of the base's networks, which are then read whole, if only once.

    Raises UserError if a folder does not hold exactly its network, but for what it may lack as a whole.
    """
    shapes = structure.shapes()
    targets: dict[str, list[str]] = {}
    for path in paths:
        if (origin := _origin(structure, path, shapes)) is not None:
            targets.setdefault(origin, []).append(path)
    arrays = {}
    for name, folder in structure.sources.items():
        network, prefix = ALL_NETWORKS[name], f"{name}."
        weights = open_folder(network, folder)
        tensors = weights.tensors
        expected = {p.removeprefix(prefix): shape.shape for p, shape in shapes.items() if p.startswith(prefix)}
        if name in _MAY_LACK and not holds(tensors, _MAY_LACK[name]):
            keys = {p: torch_key(p, network.names) for p in expected}
            expected = {p: shape for p, shape in expected.items() if not holds([keys[p]], _MAY_LACK[name])}
        matched = match(tensors, expected, network.names, where=folder)
        if fingerprints is None:
            needed = {p: tensor for p, tensor in matched.items() if prefix + p in targets}
        else:
            config, everything = checked(network, weights)
            fingerprint = Fingerprint(config)
            needed = fingerprint.taken(everything)
        for p, array in read_finite(needed, where=folder, dtype=jnp.float32):
            for target in targets.get(prefix + p, ()):
                arrays[target] = put(target, array)
        if fingerprints is not None:
            fingerprints[name] = fingerprint.hexdigest()
    return arrays


def _origin(structure: Structure, path: str, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> str | None:
    """The path in a base folder that a parameter is loaded from, if there is one."""
    path = path.removeprefix(TEACHER)
    network, _, rest = path.partition(".")
    if network in structure.sources:
        return path
    if network != "controlnet" or "unet" not in structure.sources:
        return None
    twin = shapes.get(f"unet.{unet_twin(rest)}")
    return f"unet.{unet_twin(rest)}" if twin is not None and twin.shape == shapes[path].shape else None
