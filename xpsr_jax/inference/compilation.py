"""Compiled programs, kept from one run to the next."""

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs in ~/.cache/xpsr_jax, or in the folder that the variable XPSR_JAX_CACHE names.

    XPSR_JAX_CACHE="" keeps none. JAX's own JAX_COMPILATION_CACHE_DIR goes before both.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = os.environ.get("XPSR_JAX_CACHE", str(Path.home() / ".cache" / "xpsr_jax"))
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
