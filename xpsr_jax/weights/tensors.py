"""Tensors whose data are read only when needed, so that only one tensor of a network is in memory at a time."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Array
from numpy.typing import DTypeLike

from xpsr_jax.errors import UserError, say

FLOATS: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

# Columns copied at a time. Copying a whole transposed matrix misses the cache at every element, and is 10 times slower.
_COLUMNS = 64


class WeightsError(UserError):
    """All problems of a network's weights: a summary, then a line for each problem, which names its tensor.

    Attributes:
      problems: the lines for the problems.
    """

    def __init__(self, where: object, problems: Sequence[str], hint: str = ""):
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        summary = f"{where}: these weights cannot be used, {count}{hint and ' (' + hint + ')'}:"
        super().__init__(summary, *(f"  {problem}" for problem in problems))


@dataclass(frozen=True)
class Tensor:
    """An array in a file or in memory.

    Attributes:
      name: name in its file, for messages.
      shape, dtype: known before the data are read.
      read: returns the array. It may be a view of a larger one: do not write to it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, name: str, array: np.ndarray | Array) -> "Tensor":
        """Wraps a numpy array, or a JAX array, which is copied from its device when it is read."""
        return cls(name, tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the array in memory, in bytes."""
        return self.size * self.dtype.itemsize

    def transpose(self, axes: Sequence[int]) -> "Tensor":
        """The tensor with its axes in this order, as in `numpy.transpose`. Nothing is read yet."""
        return replace(self, shape=tuple(self.shape[axis] for axis in axes), read=lambda: self.read().transpose(axes))

    def rows(self, start: int, stop: int) -> "Tensor":
        """Rows `start` to `stop` - 1, with 0 <= start <= stop <= shape[0]. Nothing is read yet."""
        return replace(self, shape=(stop - start, *self.shape[1:]), read=lambda: self.read()[start:stop])

    def reshape(self, shape: Sequence[int]) -> "Tensor":
        """The tensor in another shape with the same number of elements, row-major. -1 is not allowed. Reads nothing."""
        return replace(self, shape=tuple(shape), read=lambda: self.read().reshape(shape))


# Prefixes added by libraries that wrap a module: DistributedDataParallel, torch.compile, Lightning.
_WRAPPERS = ("module.", "_orig_mod.", "model.")


def without_shared_prefix(
    tensors: Mapping[str, Tensor], where: object, *, known: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Removes a wrapper's prefix that all names share, and reports it on stderr.

    Args:
      known: prefixes of correct names. If a name has one of them, nothing is removed.
    """
    taken, found = "", dict(tensors)
    while found and not any(key.startswith(known) for key in found):
        prefix = next((each for each in _WRAPPERS if all(key.startswith(each) for key in found)), None)
        if prefix is None:
            break
        taken += prefix
        found = {key.removeprefix(prefix): tensor for key, tensor in found.items()}
    if taken:
        _say_once(f"{where}: the prefix {taken} is removed from the names of all tensors")
    return found


@functools.cache
def _say_once(text: str) -> None:
    """Prints a message once, even if the file is read several times."""
    say(text, to_stderr=True)


def read_finite(
    tensors: Mapping[str, Tensor], *, where: object, dtype: DTypeLike | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Reads one tensor after another, row-major and in `dtype` (None: its own).

    After the last tensor, raises WeightsError naming every tensor that holds NaN or infinity, or whose values do not
    fit into `dtype`. A caller that stops early gets no error.
    """
    problems = []
    for key, tensor in tensors.items():
        array = tensor.read()
        if not np.isfinite(array).all():
            problems.append(not_finite(tensor))
            continue
        cast = contiguous(array, dtype)
        if cast.dtype != array.dtype and not np.isfinite(cast).all():
            problems.append(f"too large for {cast.dtype.name}: {tensor.name} reaches {np.abs(array).max():.6g}")
            continue
        yield key, cast
    if problems:
        raise WeightsError(where, problems)


def together(*parts: Callable[[], Any]) -> list[Any]:
    """Calls each part and returns the results. If some fail, the others are still called.

    If one part failed, raises its UserError; if several failed, raises one UserError with all their messages.
    """
    results, errors = [], []
    for part in parts:
        try:
            results.append(part())
        except UserError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        # The first lines of each error, 20 in all, to fit on a screen.
        each = max(0, 20 // len(errors) - 2)
        together = UserError(*(line for error in errors for line in error.lines(each)))
        together.limit = 20
        raise together from errors[0]
    return results


def not_finite(tensor: Tensor) -> str:
    """The line of a `WeightsError` for a tensor with NaN or infinity."""
    return f"NaN or infinity: in {tensor.name} {tensor.shape}"


def contiguous(array: np.ndarray, dtype: DTypeLike | None = None) -> np.ndarray:
    """The array in row-major order and in `dtype` (None: its own). Returned unchanged if it already is."""
    dtype = array.dtype if dtype is None else np.dtype(dtype)
    with np.errstate(over="ignore"):
        if array.flags.c_contiguous:
            return array.astype(dtype, copy=False)
        out = np.empty(array.shape, dtype)
        for start in range(0, array.shape[-1], _COLUMNS):
            out[..., start : start + _COLUMNS] = array[..., start : start + _COLUMNS]
    return out
