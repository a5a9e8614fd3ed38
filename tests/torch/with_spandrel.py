"""Imports spandrel, which reads community models for enlarging pictures. Only tests need it."""

import importlib
import sys
from unittest import mock

# spandrel imports torchvision, but these networks do not need it. Not every build of torchvision works with every
# PyTorch. So it is replaced by a mock.
_TORCHVISION = ("", ".models", ".ops", ".transforms", ".transforms.functional")


def import_spandrel():
    """Imports the package, with any torchvision or none."""
    stand_ins = {f"torchvision{name}": mock.MagicMock() for name in _TORCHVISION}
    before = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("spandrel")
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(before)
