"""Reads `*.msgpack`: the weights of Flax models, as diffusers (up to 0.39) and transformers (up to 4) saved them."""

import functools
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from flax.serialization import msgpack_restore

from xpsr_jax.errors import UserError
from xpsr_jax.files import open_regular
from xpsr_jax.weights.rules import LEAVES, TO_TORCH
from xpsr_jax.weights.tensors import Tensor
from xpsr_jax.weights.torch_files import unreadable

# Module names that end in a number in PyTorch too. The number is not an index of a list.
_NUMBERED = re.compile(r"linear_\d+")


def read_msgpack(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, by PyTorch's keys and in PyTorch's layout. Their data are read only when needed.

    Unlike a pickle, a msgpack file holds only numbers and texts.

    Raises UserError: the file is truncated, or Flax did not write it.
    """
    try:
        with open_regular(file) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            leaves = list(_leaves(data))
    except (msgpack.UnpackException, ValueError, TypeError, IndexError, OSError) as error:
        raise unreadable(file, error) from error
    return dict(_tensor(file, *leaf) for leaf in leaves)


def torch_key(path: tuple[str, ...]) -> str:
    """PyTorch's key of a path: ("down_blocks_0", "norm1", "scale") gives "down_blocks.0.norm1.weight"."""
    *modules, leaf = path
    parts = [part if _NUMBERED.fullmatch(part) else re.sub(r"_(\d+)$", r".\1", part) for part in modules]
    return ".".join([*parts, LEAVES.get(leaf, leaf)])


def _leaves(data: mmap.mmap) -> Iterator[tuple[tuple[str, ...], int, int, tuple[int, ...], np.dtype]]:
    """Path, offset, length in bytes, shape and type of every array in the file."""
    unpacker = msgpack.Unpacker(data, raw=False, max_buffer_size=2**31 - 1, ext_hook=lambda code, content: None)
    end = len(data)

    def walk(path: tuple[str, ...]) -> Iterator[Any]:
        for _ in range(unpacker.read_map_header()):
            name = unpacker.unpack()
            start = unpacker.tell()
            # A map begins with 0x80 to 0x8f, 0xde or 0xdf. Flax splits arrays above 1 GiB into a map of chunks.
            is_map = data[start] & 0xF0 == 0x80 or data[start] in (0xDE, 0xDF)
            if is_map and b"__msgpack_chunked_array__" not in data[start : start + 64]:
                yield from walk((*path, name))
                continue
            unpacker.skip()
            array = np.asarray(msgpack_restore(data[start : unpacker.tell()]))
            if array.dtype.kind in "OSU":
                raise ValueError(f"{'/'.join((*path, name))} is not an array")
            yield (*path, name), start, unpacker.tell() - start, array.shape, array.dtype

    yield from walk(())
    if unpacker.tell() != end:
        raise ValueError(f"{end - unpacker.tell()} surplus bytes at the end")


def _tensor(
    file: Path, path: tuple[str, ...], start: int, size: int, shape: tuple[int, ...], dtype: np.dtype
) -> tuple[str, Tensor]:
    tensor = Tensor("/".join(path), shape, dtype, functools.partial(_read, file, start, size))
    is_kernel = path[-1] == "kernel" and len(shape) in TO_TORCH
    return torch_key(path), tensor.transpose(TO_TORCH[len(shape)]) if is_kernel else tensor


def _read(file: Path, start: int, size: int) -> np.ndarray:
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            content = stream.read(size)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return np.asarray(msgpack_restore(content))
