"""Placement of arrays: the device mesh, and rules for parameters by path and shape. Layers do not depend on them."""

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
# A mesh of devices, or only of their number.
AnyMesh = jax.sharding.Mesh | AbstractMesh

# Ordered list of (path pattern, axes); the first match wins. Other parameters are placed by shape.
RULES: tuple[tuple[str, PartitionSpec], ...] = ((r".*\.(scale|bias)$", PartitionSpec()),)


def make_mesh(sizes: config.Mesh, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh ("data", "fsdp") over all devices. Raises UserError if the product of the sizes is not their number."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def mesh_shape(sizes: config.Mesh, devices: int) -> tuple[int, int]:
    """(data, fsdp) of a mesh over `devices` devices. Raises UserError if their product is not that number."""
    shape = [sizes.data, sizes.fsdp]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = devices // max(1, -shape[0] * shape[1])
    if min(shape) < 1 or math.prod(shape) != devices:
        raise UserError(
            f"mesh.data={sizes.data} and mesh.fsdp={sizes.fsdp} do not fit {devices} devices: their product must be "
            f"{devices}; set one of them to -1 to use all devices"
        )
    return shape[0], shape[1]


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Sharding that splits the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def gathering_kernels(mesh: AnyMesh) -> contextlib.AbstractContextManager[object]:
    """In this context, layers gather the parts of a split kernel when they use it (FSDP), and split nothing else."""
    return jax.sharding.use_abstract_mesh(mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh)


def parameter_shardings(
    parameters: Mapping[str, np.ndarray | jax.Array | jax.ShapeDtypeStruct],
    mesh: AnyMesh,
    *,
    replicated_bytes: int = config.Mesh.replicated_bytes,
) -> dict[str, NamedSharding]:
    """The sharding of each parameter (arrays or shapes, by path).

    The first rule of `RULES` that matches the path decides. Without a match, the largest dimension that is divisible
    by "fsdp" is split, if the array is larger than `replicated_bytes` (`config.Mesh`).
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
    """Makes global arrays from the parts of a batch of all processes."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def place(array: np.ndarray, sharding: NamedSharding, dtype: DTypeLike) -> jax.Array:
    """Casts an array that every process has, and places it on the devices. Each device gets only its own part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index].astype(dtype, copy=False))


def host() -> jax.Device:
    """The CPU as a JAX device, for arrays that must not use an accelerator's memory.

    With JAX_PLATFORMS=cuda or tpu, JAX has no CPU device, and the first device of this process is returned. With
    JAX_PLATFORMS=cuda,cpu it has both.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def on_every_device(weights: T, mesh: jax.sharding.Mesh) -> T:
    """Replicates a tree of arrays on every device of the mesh. Arrays that are on all of them are unchanged."""
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
