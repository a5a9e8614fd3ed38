"""Where arrays live: the device mesh, and rules that place parameters by path and shape. Layers do not know them."""

import contextlib
import math
import re
from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from xpsr_jax import config
from xpsr_jax.errors import UserError

T = TypeVar("T")
# Of devices, or of their number alone.
AnyMesh = jax.sharding.Mesh | AbstractMesh

# Ordered (path pattern, axes), first match wins; what matches nothing follows `_by_shape`.
RULES: tuple[tuple[str, PartitionSpec], ...] = ((r".*\.(scale|bias)$", PartitionSpec()),)


def make_mesh(sizes: config.Mesh, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh ("data", "fsdp") over all devices. Raises UserError where the sizes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def mesh_shape(sizes: config.Mesh, devices: int) -> tuple[int, int]:
    """(data, fsdp) of a mesh over so many devices. Raises UserError where they do not multiply to that number."""
    shape = [sizes.data, sizes.fsdp]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = devices // max(1, -shape[0] * shape[1])
    if min(shape) < 1 or math.prod(shape) != devices:
        raise UserError(
            f"mesh.data={sizes.data} and mesh.fsdp={sizes.fsdp} do not multiply to the {devices} devices; "
            "one of them may be -1 and takes what is left"
        )
    return shape[0], shape[1]


def replicated(mesh: AnyMesh) -> NamedSharding:
    """All of it on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def gathering_kernels(mesh: AnyMesh) -> contextlib.AbstractContextManager[object]:
    """Within it, layers bring the parts of a split kernel together when they use it (FSDP), and split nothing else."""
    return jax.sharding.use_abstract_mesh(mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh)


def parameter_shardings(
    parameters: Mapping[str, np.ndarray | jax.Array | jax.ShapeDtypeStruct],
    mesh: AnyMesh,
    *,
    replicated_bytes: int = config.Mesh.replicated_bytes,
) -> dict[str, NamedSharding]:
    """The sharding of each parameter (arrays or shapes, by path).

    By the first of `RULES` that matches its path. Otherwise the largest dimension that "fsdp" divides is split, if the
    array is larger than `replicated_bytes` (`config.Mesh`).
    """

    def spec(path: str, parameter: np.ndarray | jax.Array | jax.ShapeDtypeStruct) -> PartitionSpec:
        for pattern, rule in RULES:
            if re.fullmatch(pattern, path):
                return rule
        if math.prod(parameter.shape) * parameter.dtype.itemsize <= replicated_bytes:
            return PartitionSpec()
        return _split_largest(parameter.shape, mesh.shape["fsdp"])

    return {path: NamedSharding(mesh, spec(path, parameter)) for path, parameter in parameters.items()}


def shard_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Global arrays, of every process's part of a batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def place(array: np.ndarray, sharding: NamedSharding, dtype: DTypeLike) -> jax.Array:
    """An array that every process has, cast and put where it belongs; each device is sent its own part only."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index].astype(dtype, copy=False))


def host() -> jax.Device:
    """The CPU as a device of JAX, for arrays that are not to take an accelerator's memory.

    With JAX_PLATFORMS=cuda or tpu alone JAX has no CPU; then it is the first device of this process.
    JAX_PLATFORMS=cuda,cpu has both.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def on_every_device(weights: T, mesh: jax.sharding.Mesh) -> T:
    """A tree of arrays, each whole on every device of the mesh; those that are on all of them stay as they are."""
    devices = set(mesh.devices.flat)

    def place_whole(weight: np.ndarray | jax.Array) -> jax.Array:
        if isinstance(weight, jax.Array) and weight.sharding.device_set == devices:
            return weight
        placed: jax.Array = jax.device_put(weight, replicated(mesh))
        return placed

    everywhere: T = jax.tree.map(place_whole, weights)
    return everywhere


def _split_largest(shape: tuple[int, ...], size: int) -> PartitionSpec:
    divisible = [axis for axis, n in enumerate(shape) if n % size == 0]
    if size == 1 or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(len(shape))))
