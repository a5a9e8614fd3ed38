"""Reads pickles of numpy arrays safely. A pickle can run any code, so this reader accepts only arrays."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

# All globals that a pickled array needs. Numpy has moved its reconstruction function, so it is taken from an array.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_NUMPY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _NumpyUnpickler(pickle.Unpickler):
    """Builds containers of numpy arrays. If a pickle needs anything else, it is refused before any code runs."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the global with this name. Raises UnpicklingError unless numpy arrays need it."""
        if (module, name) not in _NUMPY_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only numpy arrays are read from a pickle")
        return _NUMPY_GLOBALS[module, name]


def read_numpy_pickle(path: Path) -> Any:
    """Reads a pickle made of dicts, lists, strings, numbers and numpy arrays.

    Raises:
        pickle.UnpicklingError: the file needs anything else (the message names it), or is damaged. None of its code
            has run.
    """
    with path.open("rb") as file:
        try:
            return _NumpyUnpickler(file).load()
        except Exception as error:  # a damaged pickle can raise almost any exception
            raise pickle.UnpicklingError(f"{path} was refused: {error or 'the file is incomplete'}") from error
