"""XPSR in JAX: image super-resolution with Stable Diffusion, steered by a high-level and a low-level caption.

`load` reads a model folder. `restore` restores photographs with the model, a `Caption` of each photograph, and settings
in a `Sampling`. `convert` makes a model folder from other weights, `train` makes one from photographs. `load_networks`
reads only XPSR's two networks. `dists`, `lpips`, `psnr` and `ssim` compare two images.

Each is imported when it is first used. `import xpsr_jax` alone is therefore fast, and touches no device.
"""

import importlib
from typing import TYPE_CHECKING, Any

from xpsr_jax.version import __version__

if TYPE_CHECKING:
    from xpsr_jax.config import Sampling as Sampling
    from xpsr_jax.data.captions import Caption as Caption
    from xpsr_jax.evaluation.metrics import dists as dists
    from xpsr_jax.evaluation.metrics import lpips as lpips
    from xpsr_jax.evaluation.metrics import psnr as psnr
    from xpsr_jax.evaluation.metrics import ssim as ssim
    from xpsr_jax.inference.restore import restore as restore
    from xpsr_jax.training.conversion import convert as convert
    from xpsr_jax.training.loop import train as train
    from xpsr_jax.weights.model_folder import load as load
    from xpsr_jax.weights.model_folder import load_networks as load_networks


_MODULES = {
    "Caption": "data.captions",
    "Sampling": "config",
    "convert": "training.conversion",
    "dists": "evaluation.metrics",
    "load": "weights.model_folder",
    "load_networks": "weights.model_folder",
    "lpips": "evaluation.metrics",
    "psnr": "evaluation.metrics",
    "restore": "inference.restore",
    "ssim": "evaluation.metrics",
    "train": "training.loop",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'xpsr_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"xpsr_jax.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
