"""PyTorch's pickled files (`.bin`, `.ckpt`, `.pt`, `.pth`), of which only tensors are ever read.

A pickle may run any code when it is opened. PyTorch's `weights_only=True` opens none but tensors and plain containers,
and nothing here opens a file in another way.
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
    """The tensors of a file, by key; its data are mapped, and read when asked for.

    Of a training's checkpoint (PyTorch Lightning's, in which Stable Diffusion appeared) they are its `state_dict`; of
    BasicSR's, the keys begin with the name of the group, "params" or "params_ema".

    Raises UserError: PyTorch is not installed; the file is truncated, or holds something else than tensors.
    """
    content = _load(file)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if isinstance(content, dict) and content and set(content) <= {"params", "params_ema"}:
        groups = {name: group for name, group in content.items() if isinstance(group, dict)}
        content = {f"{name}.{key}": value for name, group in groups.items() for key, value in group.items()}
    if not isinstance(content, dict):
        raise UserError(f"{file} should hold tensors by name, not {type(content).__name__}")
    if odd := [
        f"{key} ({type(value).__name__})" for key, value in content.items() if not hasattr(value, "untyped_storage")
    ]:
        raise UserError(f"{file} holds what is no tensor: {listed(odd)}")
    return {str(key): _tensor(file, str(key), value) for key, value in content.items()}


def _load(file: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file} is pickled, which only PyTorch can read safely, and it is not installed: "
            'pip install "xpsr-jax[torch]" (or torch alone), or take the safetensors file instead if there is one'
        ) from error
    # A pipe would be waited for.
    open_regular(file).close()
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # Written before PyTorch 1.6: it has to be read as a whole.
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{file} is not opened: beside tensors it holds {found[1]}, and unpickling such objects can run any "
                "code. If you trust where it comes from, save its tensors alone: "
                "safetensors.torch.save_file(torch.load(FILE, weights_only=False)['state_dict'], 'model.safetensors')"
            ) from error
        raise unreadable(file, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError) as error:
        raise unreadable(file, error) from error


def _tensor(file: Path, key: str, value: Any) -> Tensor:
    import torch

    value = value.detach()
    if value.dtype == torch.bfloat16:  # which numpy does not know
        value, dtype = value.view(torch.int16), np.dtype(ml_dtypes.bfloat16)
    else:
        try:
            dtype = torch.empty(0, dtype=value.dtype).numpy().dtype
        except TypeError as error:
            raise UserError(f"{file}: {key} is of a type that is not supported, {value.dtype}") from error
    return Tensor(key, tuple(value.shape), dtype, functools.partial(_read, value, dtype))


def _read(value: Any, dtype: np.dtype) -> np.ndarray:
    array: np.ndarray = value.numpy().view(dtype)
    return array
