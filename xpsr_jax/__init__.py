"""XPSR in JAX: image super-resolution by Stable Diffusion, steered by a high- and a low-level caption.

`xpsr_jax.load(folder)` reads a whole model folder, `xpsr_jax.load_networks(folder)` the two networks of XPSR. They are
imported when first used, so `import xpsr_jax` alone costs nothing and touches no device.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpsr_jax.weights.model_folder import load as load
    from xpsr_jax.weights.model_folder import load_networks as load_networks

__version__ = "0.1.0"
__all__ = ["__version__", "load", "load_networks"]


def __getattr__(name: str) -> Any:
    if name in ("load", "load_networks"):
        from xpsr_jax.weights import model_folder

        return getattr(model_folder, name)
    raise AttributeError(f"module 'xpsr_jax' has no attribute {name!r}")
