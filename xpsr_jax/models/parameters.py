"""A network's parameters by their paths, taken out and put back.

A path has the attributes and indices that lead to a parameter, joined by ".": "mid_block.attentions.0.proj_in.kernel".
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.tree_util import KeyPath, keystr

M = TypeVar("M", bound=nnx.Module)


def parameters(module: nnx.Module) -> dict[str, Any]:
    """The network's parameters by path: arrays, or their shapes if the network is abstract."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.as_pure(nnx.state(module, nnx.Param)))
    return {_dotted(path): leaf for path, leaf in leaves}


def with_parameters(module: M, values: Mapping[str, Any]) -> M:
    """The network with `values` as its parameters, which must be all of them; the given one stays as it is.

    Under jit this costs nothing.
    """
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(lambda path, _: values[_dotted(path)], nnx.as_pure(state)))


def set_parameters(module: nnx.Module, values: Mapping[str, Any]) -> None:
    """Gives the network, in place, other values of some parameters."""
    state = nnx.as_pure(nnx.state(module, nnx.Param))
    nnx.update(module, jax.tree_util.tree_map_with_path(lambda path, old: values.get(_dotted(path), old), state))


def _dotted(path: KeyPath) -> str:
    return keystr(path, simple=True, separator=".")
