"""A network's weights as an Orbax checkpoint, which each process restores directly onto its own devices.

The checkpoint is a dict of arrays by our parameter paths, in our layout.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from xpsr_jax import sharding
from xpsr_jax.errors import UserError
from xpsr_jax.files import without_patterns
from xpsr_jax.weights.tensors import Tensor

FOLDER = "orbax"
# Limit of the bytes being written at the same time, in addition to the arrays themselves. One array must fit.
_CONCURRENT_BYTES = 100_000_000


def write(arrays: Iterable[tuple[str, np.ndarray]], folder: Path) -> None:
    """Writes arrays by path. All of them are in memory at the same time.

    Raises UserError if the folder cannot be written.
    """
    # As JAX arrays on the host: Orbax would copy all numpy arrays at the same time, whatever the limit.
    with jax.default_device(sharding.host()):
        tree = {path: jax.device_put(array) for path, array in arrays}
    try:
        limit = max([_CONCURRENT_BYTES, *(array.nbytes for array in tree.values())])
        with without_patterns(folder) as path, _checkpointer(limit) as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be written: {error}") from error


def read(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by our paths and in our layout. Only names, shapes and types are read at first.

    Raises UserError if the folder is not a checkpoint, or is incomplete.
    """
    try:
        with without_patterns(folder) as plain, _checkpointer() as checkpointer:
            tree = checkpointer.metadata(plain).item_metadata.tree
        return {
            path: Tensor(path, tuple(array.shape), np.dtype(array.dtype), functools.partial(_read, folder, path))
            for path, array in tree.items()
        }
    # Damage in its many files raises errors of many types.
    except Exception as error:
        raise _incomplete(folder, error) from error


def restore(folder: Path, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Restores arrays of these types, each with its `sharding`. A process reads only the parts for its own devices.

    Raises UserError if the checkpoint is incomplete.
    """
    try:
        with without_patterns(folder) as plain, _checkpointer() as checkpointer:
            arguments = ocp.checkpoint_utils.construct_restore_args(dict(abstract))
            restored: dict[str, jax.Array] = checkpointer.restore(
                plain,
                args=ocp.args.PyTreeRestore(item=dict(abstract), restore_args=arguments, partial_restore=True),
            )
            return restored
    except Exception as error:
        raise _incomplete(folder, error) from error


def _checkpointer(concurrent_bytes: int = _CONCURRENT_BYTES) -> Any:
    # Orbax accepts a fraction of a GB, though the annotation says int. A little more, because the value is rounded.
    limit: Any = 1.01 * concurrent_bytes / 1e9
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=True, save_concurrent_gb=limit)
    return ocp.Checkpointer(handler)


def _read(folder: Path, path: str) -> np.ndarray:
    """One array. Orbax would read the metadata of the whole checkpoint for each array, which is 20 times slower."""
    base = {"driver": "file", "path": f"{folder.resolve()}/"}
    store = {"driver": "ocdbt", "base": base, "path": f"{path}/"}
    try:
        return tensorstore.open({"driver": "zarr3", "kvstore": store}).result().read().result()
    except ValueError as error:
        raise _incomplete(folder, error) from error


def _incomplete(folder: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    return UserError(f"{folder} is not an Orbax checkpoint, or is incomplete: convert it again ({reason})")
