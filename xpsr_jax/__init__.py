"""XPSR in JAX: image super-resolution by Stable Diffusion, steered by a high- and a low-level caption.

`xpsr_jax.load(folder)` reads a whole model folder, `xpsr_jax.load_networks(folder)` the two networks of XPSR. They are
imported when first used, so `import xpsr_jax` alone costs nothing and touches no device. So are the measures of how
alike two images are: `xpsr_jax.dists`, `lpips`, `psnr` and `ssim`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpsr_jax.evaluation.metrics import dists as dists
    from xpsr_jax.evaluation.metrics import lpips as lpips
    from xpsr_jax.evaluation.metrics import psnr as psnr
    from xpsr_jax.evaluation.metrics import ssim as ssim
    from xpsr_jax.weights.model_folder import load as load
    from xpsr_jax.weights.model_folder import load_networks as load_networks

__version__ = "0.1.0"
__all__ = ["__version__", "dists", "load", "load_networks", "lpips", "psnr", "ssim"]


def __getattr__(name: str) -> Any:
    if name in ("load", "load_networks"):
        from xpsr_jax.weights import model_folder

        return getattr(model_folder, name)
    if name in ("dists", "lpips", "psnr", "ssim"):
        from xpsr_jax.evaluation import metrics

        return getattr(metrics, name)
    raise AttributeError(f"module 'xpsr_jax' has no attribute {name!r}")
