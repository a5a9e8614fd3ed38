"""Golden files for the tests of the networks: channels last, float32, and one measure of errors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

VECTORS = Path(__file__).parents[1] / "vectors"


def channels_last(array: np.ndarray) -> np.ndarray:
    """PyTorch's NCHW as NHWC; other shapes are unchanged. float16 becomes float32."""
    array = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
    return array.astype(np.float32) if array.dtype == np.float16 else array


def read(file: Path) -> dict[str, np.ndarray]:
    return {key: channels_last(value) for key, value in load_file(file).items()}


def under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors whose names begin with `prefix`, by their names without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def error(ours: Any, theirs: np.ndarray) -> float:
    """The largest difference divided by the root mean square of the expected values (method §13)."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.sqrt(np.mean(theirs**2)))


def assert_close(ours: Mapping[str, Any], theirs: Mapping[str, np.ndarray], tolerance: float) -> None:
    """Both have the same names, and each tensor is within `tolerance` of its counterpart."""
    assert ours.keys() == theirs.keys()
    errors = {key: error(ours[key], theirs[key]) for key in theirs}
    assert {key: value for key, value in errors.items() if not value <= tolerance} == {}


def outputs_by_path(module: nnx.Module, call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """The result of `call`, and the results of `module`'s submodules during the call, by path.

    A path is like "down_blocks.0.resnets.0". If a submodule returns a tuple, only its first element is kept, which is
    the feature map. Works under jit, within one trace.
    """
    paths = {id(child): ".".join(map(str, path)) for path, child in nnx.iter_modules(module)}
    kinds = {type(child) for _, child in nnx.iter_modules(module) if "__call__" in vars(type(child))}
    outputs: dict[str, Any] = {}

    def recorded(original: Callable) -> Callable:
        def wrapper(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            outputs[paths[id(self)]] = result[0] if isinstance(result, tuple) else result
            return result

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for kind in kinds:
            patch.setattr(kind, "__call__", recorded(vars(kind)["__call__"]))
        return call(), outputs
