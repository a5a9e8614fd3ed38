"""Where arrays live: the device mesh, and rules that place parameters by their path and shape. Layers know nothing of it."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from xpsr_jax import config
from xpsr_jax.errors import UserError

# Ordered (path pattern, axes), first match wins; what matches nothing follows `_by_shape`.
RULES: tuple[tuple[str, PartitionSpec], ...] = ((r".*\.(scale|bias)$", PartitionSpec()),)
_SMALLEST_SHARDED_BYTES = 2**20


def make_mesh(sizes: config.Mesh, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh ("data", "fsdp") over all devices. Raises UserError where the sizes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    shape = [sizes.data, sizes.fsdp]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = len(devices) // max(1, -shape[0] * shape[1])
    if shape[0] * shape[1] != len(devices) or min(shape) < 1:
        raise UserError(f"mesh.data={sizes.data} and mesh.fsdp={sizes.fsdp} do not multiply to the {len(devices)} devices; -1 takes what is left")
    return jax.make_mesh(tuple(shape), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def parameter_shardings(parameters: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, NamedSharding]:
    """The sharding of each parameter (arrays or shapes, by path)."""
    return {path: NamedSharding(mesh, _spec(path, p.shape, p.dtype, mesh.shape["fsdp"])) for path, p in parameters.items()}


def shard_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Global arrays, of every process's part of a batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def _spec(path: str, shape: tuple[int, ...], dtype: Any, size: int) -> PartitionSpec:
    for pattern, spec in RULES:
        if re.fullmatch(pattern, path):
            return spec
    return _by_shape(shape, np.dtype(dtype).itemsize, size)


def _by_shape(shape: tuple[int, ...], itemsize: int, size: int) -> PartitionSpec:
    """The largest dimension that fsdp divides, of arrays above 1 MiB."""
    divisible = [axis for axis, n in enumerate(shape) if n % size == 0]
    if np.prod(shape) * itemsize <= _SMALLEST_SHARDED_BYTES or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(len(shape))))
