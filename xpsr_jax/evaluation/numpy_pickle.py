"""Reads pickles of numpy arrays safely. A pickle can run any code, so this reader knows arrays and nothing else."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

# All that a pickled array needs. Numpy moved its reconstruction function between modules, so an array is asked for it.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_NUMPY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _NumpyUnpickler(pickle.Unpickler):
    """Builds containers of numpy arrays; refuses, before anything runs, whatever else a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle calls by this name. Raises UnpicklingError unless an array needs it."""
        if (module, name) not in _NUMPY_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are read from a pickle")
        return _NUMPY_GLOBALS[module, name]


def read_numpy_pickle(path: Path) -> Any:
    """Reads a pickle made of dicts, lists, strings, numbers and numpy arrays.

    Raises:
        pickle.UnpicklingError: the file asks for anything else (it is named), or is damaged. None of its code has run.
    """
    with path.open("rb") as file:
        try:
            return _NumpyUnpickler(file).load()
        except Exception as error:  # a damaged pickle can raise nearly anything
            raise pickle.UnpicklingError(f"{path} was refused: {error or 'the file is cut short'}") from error
