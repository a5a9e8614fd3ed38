"""The initial parameters of a training: loaded, copied or random (method §5), each placed directly in its sharding."""

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
# A base may lack one of these groups, but only the whole group. It is then initialised as in a new network (method §5).
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
    """Parameters at the start of training: the trained ones in float32, the others in `frozen_dtype`.

    Parameters in the base are loaded. If the base has no ControlNet, that is copied from its UNet. All others are
    initialised at random.

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
    """Random initial values, made on the CPU (`sharding.host`), so that they do not depend on the mesh.

    Runs operation by operation. Each one is compiled once per shape, where a whole network as one program would take
    minutes to compile.
    """
    adapters = {
        path: initial_adapter(path, structure.extra[path].shape, seed)
        for path in paths
        if path.startswith((STUDENT, CRITIC))
    }
    # The teacher's values are the student's initial values.
    names = {path: path.removeprefix(TEACHER) for path in paths if path not in adapters}
    components = sorted({name.partition(".")[0] for name in names.values()})
    if "controlnet" in components and "unet" not in structure.sources:
        components = sorted({*components, "unet"})  # The ControlNet starts as a copy of the UNet.
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
    """Loads those of `paths` that the base folders contain, tensor by tensor.

    A ControlNet that the base lacks is filled with copies from the loaded UNet.

    Args:
      put: called with a path and its array (float32, on the host); its result is returned for this path.
      fingerprints: a dict that receives the fingerprints of the base's networks. All their tensors are then read, once.

    Raises UserError if a folder lacks tensors or has unknown ones. Only a whole group of `_MAY_LACK` may be missing.
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
    """The path of the base's tensor that a parameter is loaded from; None if the base does not have it."""
    path = path.removeprefix(TEACHER)
    network, _, rest = path.partition(".")
    if network in structure.sources:
        return path
    if network != "controlnet" or "unet" not in structure.sources:
        return None
    twin = shapes.get(f"unet.{unet_twin(rest)}")
    return f"unet.{unet_twin(rest)}" if twin is not None and twin.shape == shapes[path].shape else None
