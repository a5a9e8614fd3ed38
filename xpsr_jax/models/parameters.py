"""Gets and sets a network's parameters by their paths.

A path consists of the attributes and indices that lead to a parameter, joined by ".", such as
"mid_block.attentions.0.proj_in.kernel".
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
    """A copy of the network with `values` as its parameters. `values` must contain every parameter.

    The given network is unchanged. Under jit this costs nothing.
    """
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(lambda path, _: values[_dotted(path)], nnx.as_pure(state)))


def set_parameters(module: nnx.Module, values: Mapping[str, Any]) -> None:
    """Sets some of the network's parameters, in place."""
    state = nnx.as_pure(nnx.state(module, nnx.Param))
    nnx.update(module, jax.tree_util.tree_map_with_path(lambda path, old: values.get(_dotted(path), old), state))


def _dotted(path: KeyPath) -> str:
    return keystr(path, simple=True, separator=".")
