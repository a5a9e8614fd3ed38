"""spandrel, which reads community models for enlarging pictures (tests alone need it)."""

import importlib
import sys
from unittest import mock

# It imports torchvision for other networks than these. Not every build of that goes with every PyTorch, so it gets a
# stand-in.
_TORCHVISION = ("", ".models", ".ops", ".transforms", ".transforms.functional")


def import_spandrel():
    """The package, whichever torchvision is there."""
    stand_ins = {f"torchvision{name}": mock.MagicMock() for name in _TORCHVISION}
    before = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("spandrel")
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(before)
