"""Extra parameters of few-step training, in addition to those of the networks.

Their paths begin with a prefix:

- `student.<path>.down` and `student.<path>.up` are a low-rank adapter (Hu et al., 2022) of the kernel at <path>.
- `critic.…` is either a second adapter or a discriminator.
- `teacher.<path>` is the frozen initial value of a trained parameter.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Shapes = dict[str, jax.ShapeDtypeStruct]
STUDENT, CRITIC, TEACHER = "student.", "critic.", "teacher."
_DOWN, _UP = ".down", ".up"


def adapter_shapes(shapes: Mapping[str, Any], kernels: Iterable[str], *, rank: int, prefix: str) -> Shapes:
    """The shapes of an adapter for each kernel: "down" is (*inputs, rank), "up" is (rank, outputs)."""
    adapters = {}
    for path in kernels:
        *inputs, outputs = shapes[path].shape
        adapters[f"{prefix}{path}{_DOWN}"] = jax.ShapeDtypeStruct((*inputs, rank), jnp.float32)
        adapters[f"{prefix}{path}{_UP}"] = jax.ShapeDtypeStruct((rank, outputs), jnp.float32)
    return adapters


def initial_adapter(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The initial value of an adapter's array. "down" is uniform, like the kernel of a new layer; "up" is zero."""
    if path.endswith(_UP):
        return np.zeros(shape, np.float32)
    bound = np.prod(shape[:-1]) ** -0.5
    return np.random.default_rng([seed, *path.encode()]).uniform(-bound, bound, shape).astype(np.float32)


def with_adapters(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The parameters with the adapters of this prefix added to their kernels: kernel + down · up, in the kernel's type.

    Without such adapters the values are unchanged.
    """
    merged = dict(values)
    for path, down in values.items():
        if path.startswith(prefix) and path.endswith(_DOWN):
            target = path.removeprefix(prefix).removesuffix(_DOWN)
            kernel = values[target]
            merged[target] = (kernel.astype(np.float32) + down @ values[f"{prefix}{target}{_UP}"]).astype(kernel.dtype)
    return merged


def with_teacher(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, with the teacher's values in place of the trained ones."""
    return dict(values) | {
        path.removeprefix(TEACHER): value for path, value in values.items() if path.startswith(TEACHER)
    }


def exported(paths: Iterable[str]) -> frozenset[str]:
    """The paths that an exported model is made from: all except the teacher's and the critic's."""
    return frozenset(path for path in paths if not path.startswith((TEACHER, CRITIC)))
