"""Makes inference fast on the available devices: a cache of compiled programs, compiler flags, faster convolutions."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from xpsr_jax.machine import cache_folder
from xpsr_jax.models.winograd import with_winograd
from xpsr_jax.weights.model_folder import Model


def use_compilation_cache() -> None:
    """Caches compiled programs in `machine.cache_folder`, if there is one. JAX's own variable takes precedence."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if folder := cache_folder():
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# Flags of the TPU compiler (docs/understand/pods.md says what each saves). Without them the compiler splits
# convolutions over small batches in space, and splits products with sharded weights into several rounds. Both move far
# more data than they save.
TPU_FLAGS: dict[str, bool | int] = {
    # These two have an effect only together.
    "xla_tpu_run_space_to_batch": False,
    "xla_tpu_run_space_to_batch_on_new_platforms": False,
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
}


def use_tpu_flags() -> None:
    """Sets `TPU_FLAGS` for this process. Call it before the first use of a TPU.

    Flags that LIBTPU_INIT_ARGS sets already take precedence.
    """
    said = os.environ.get("LIBTPU_INIT_ARGS", "")
    new = (f"--{name}={str(value).lower()}" for name, value in TPU_FLAGS.items() if f"--{name}=" not in said)
    os.environ["LIBTPU_INIT_ARGS"] = " ".join([said, *new]).strip()


def with_fast_convolutions(model: Model) -> Model:
    """Returns the model for inference. On a CPU, in float32, `winograd.with_winograd` makes its convolutions faster.

    The given model is unchanged. It may hold shapes instead of arrays.
    """
    if jax.default_backend() != "cpu" or model.unet.conv_in.kernel.dtype != jnp.float32:
        return model
    shapes_only = isinstance(model.unet.conv_in.kernel.get_value(), jax.ShapeDtypeStruct)
    replace: Callable[[Any], Any] = functools.partial(nnx.eval_shape, with_winograd) if shapes_only else with_winograd
    return dataclasses.replace(
        model,
        unet=replace(model.unet),
        controlnet=replace(model.controlnet),
        autoencoder=replace(model.autoencoder),
    )
