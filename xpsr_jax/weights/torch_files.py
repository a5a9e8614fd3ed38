"""Reads and writes safetensors files: single files, or shards with an index."""

import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from xpsr_jax.errors import UserError, listed
from xpsr_jax.files import new_file, open_regular
from xpsr_jax.json_files import parse_json, read_json, write_json
from xpsr_jax.weights.tensors import Tensor, read_finite

# File names (without extension) of a component's weights in diffusers and transformers.
STEMS = ("diffusion_pytorch_model", "model")

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, by key. Only the header is read at first.

    The library checks the header, but this module reads the data. With the library, every tensor would be in memory
    twice, or mapped, which counts as memory too.
    """
    header, length = _header(file)
    header.pop("__metadata__", None)
    if odd := [f"{key} ({entry['dtype']})" for key, entry in header.items() if entry["dtype"] not in _DTYPES]:
        raise UserError(f"{file}: tensors with unsupported types: {listed(odd)}")
    tensors = {}
    for key, entry in header.items():
        shape, dtype, offset = tuple(entry["shape"]), _DTYPES[entry["dtype"]], 8 + length + entry["data_offsets"][0]
        tensors[key] = Tensor(key, shape, dtype, functools.partial(_read, file, shape, dtype, offset))
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises UserError if it cannot be read."""
    metadata = _header(file)[0].get("__metadata__")
    return dict(metadata) if isinstance(metadata, dict) else {}


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and its length in bytes."""
    try:
        # Opened here first to refuse a pipe: the library would wait for its data.
        with open_regular(file) as stream, safe_open(file, framework="np"):
            length = int.from_bytes(stream.read(8), "little")
            return parse_json(stream.read(length), file), length
    except (SafetensorError, OSError) as error:
        raise unreadable(file, error) from error


def read_shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all files that an index names. `read` reads each file.

    Raises UserError if a file or a tensor is missing, or if a file name points outside the folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map")
    if odd := [key for key, name in weight_map.items() if not isinstance(name, str)]:
        raise UserError(f"{index}: weight_map.{odd[0][:100]} must be the name of a file")
    names = sorted(set(weight_map.values()))
    if elsewhere := [name for name in names if Path(name).name != name]:
        raise UserError(f"{index} names files outside its folder: {listed(elsewhere)}")
    if absent := [name for name in names if not (index.parent / name).exists()]:
        raise UserError(f"{index} names files that do not exist: {listed(absent)}")
    shards = {name: read(index.parent / name) for name in names}
    if absent := [f"{key} in {name}" for key, name in weight_map.items() if key not in shards[name]]:
        raise UserError(f"{index} names tensors that are missing: {listed(absent)}")
    return {key: shards[name][key] for key, name in weight_map.items()}


def write_folder(
    tensors: Mapping[str, Tensor],
    folder: Path,
    stem: str,
    *,
    where: object,
    dtype: DTypeLike | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Writes a component's tensors in the format of diffusers and transformers, with one in memory at a time.

    Args:
      tensors: by key, in PyTorch's layout.
      folder: an existing folder.
      stem: file name without extension, one of `STEMS`.
      where: source of the tensors, for errors.
      dtype: type to cast to (None: unchanged).
      shard_bytes: start another file above this size, and write an index.

    Raises the errors of `write_file`.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for key in sorted(tensors):
        nbytes = _nbytes(tensors[key], dtype)
        if shard_bytes is not None and shards[-1] and size + nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = tensors[key]
        size += nbytes
        total += nbytes
    if len(shards) == 1:
        write_file(tensors, folder / f"{stem}.safetensors", where=where, dtype=dtype)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        write_file(shard, folder / name, where=where, dtype=dtype)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(index, folder / f"{stem}.safetensors.index.json")


def write_file(tensors: Mapping[str, Tensor], file: Path, *, where: object, dtype: DTypeLike | None = None) -> None:
    """Writes one safetensors file, with the same bytes as the library, but without all tensors in memory at once.

    Raises:
      WeightsError: names every tensor that holds NaN or infinity, or whose values do not fit into `dtype`.
      UserError: the file cannot be written.
    """
    types = {key: np.dtype(dtype or tensor.dtype) for key, tensor in tensors.items()}
    order = sorted(tensors, key=lambda key: (-types[key].itemsize, key))
    # diffusers refuses a file that does not name its framework.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in order:
        start, end = end, end + _nbytes(tensors[key], dtype)
        header[key] = {"dtype": _DTYPE_NAMES[types[key]], "shape": tensors[key].shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with new_file(file) as temporary, temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, array in read_finite({key: tensors[key] for key in order}, where=where, dtype=dtype):
            stream.write(array.reshape(-1).view(np.uint8).data)


def _nbytes(tensor: Tensor, dtype: DTypeLike | None) -> int:
    return tensor.size * np.dtype(dtype or tensor.dtype).itemsize


def _read(file: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> np.ndarray:
    count = math.prod(shape)
    try:
        flat = np.fromfile(file, dtype, count, offset=offset)
    except OSError as error:
        raise unreadable(file, error) from error
    if flat.size != count:
        raise UserError(f"{file} became shorter while it was being read; try again")
    return flat.reshape(shape)


def unreadable(file: Path, error: Exception) -> UserError:
    """The UserError for a weight file that cannot be read."""
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{file} cannot be read: {error.strerror}")
    with file.open("rb") as stream:
        if stream.read(23) == b"version https://git-lfs":
            return UserError(f"{file} is only a Git LFS pointer; fetch the file itself with `git lfs pull`")
    size, reason = file.stat().st_size, str(error).strip().partition("\n")[0] or type(error).__name__
    return UserError(
        f"{file} ({size:,} bytes) is truncated, corrupt or not a {file.suffix} file ({reason}); copy it again"
    )
