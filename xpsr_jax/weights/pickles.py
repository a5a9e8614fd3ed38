"""Reads PyTorch's pickled files (`.bin`, `.ckpt`, `.pt`, `.pth`), and only tensors from them.

A pickle may run any code when it is opened. PyTorch's `weights_only=True` loads only tensors and plain containers.
This module never opens a file in another way.
"""

import functools
import pickle
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from xpsr_jax.errors import UserError, listed
from xpsr_jax.files import open_regular
from xpsr_jax.weights.tensors import Tensor
from xpsr_jax.weights.torch_files import unreadable

PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def read_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, by key. Their data are memory-mapped, and read only when needed.

    From a training checkpoint of PyTorch Lightning (Stable Diffusion's format), the `state_dict` is read. In a file of
    BasicSR, the keys begin with the name of the group, "params" or "params_ema".

    Raises UserError: PyTorch is not installed, or the file is truncated or does not hold only tensors.
    """
    content = _load(file)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if isinstance(content, dict) and content and set(content) <= {"params", "params_ema"}:
        groups = {name: group for name, group in content.items() if isinstance(group, dict)}
        content = {f"{name}.{key}": value for name, group in groups.items() for key, value in group.items()}
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold tensors by name, not {type(content).__name__}")
    if odd := [
        f"{key} ({type(value).__name__})" for key, value in content.items() if not hasattr(value, "untyped_storage")
    ]:
        raise UserError(f"{file} holds values that are not tensors: {listed(odd)}")
    return {str(key): _tensor(file, str(key), value) for key, value in content.items()}


def _load(file: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file} is a pickle, which only PyTorch can read safely, and PyTorch is not installed: "
            'pip install "xpsr-jax[torch]" (or torch alone), or use the safetensors file if there is one'
        ) from error
    # Refuses a pipe: PyTorch would wait for its data.
    open_regular(file).close()
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # Written before PyTorch 1.6: such a file cannot be mapped, and is read as a whole.
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{file} is refused: it holds {found[1]}, and unpickling objects other than tensors can run any code. "
                "If you trust its source, save its tensors alone: "
                "safetensors.torch.save_file(torch.load(FILE, weights_only=False)['state_dict'], 'model.safetensors')"
            ) from error
        raise unreadable(file, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError) as error:
        raise unreadable(file, error) from error


def _tensor(file: Path, key: str, value: Any) -> Tensor:
    import torch

    value = value.detach()
    if value.dtype == torch.bfloat16:  # unknown to numpy
        value, dtype = value.view(torch.int16), np.dtype(ml_dtypes.bfloat16)
    else:
        try:
            dtype = torch.empty(0, dtype=value.dtype).numpy().dtype
        except TypeError as error:
            raise UserError(f"{file}: {key} has an unsupported type, {value.dtype}") from error
    return Tensor(key, tuple(value.shape), dtype, functools.partial(_read, value, dtype))


def _read(value: Any, dtype: np.dtype) -> np.ndarray:
    array: np.ndarray = value.numpy().view(dtype)
    return array
