"""What makes inference fast on the devices at hand: compiled programs kept, flags, forms of computation."""

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
    """Keeps compiled programs in `machine.cache_folder`, if there is one. JAX's own variable goes first."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if folder := cache_folder():
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# What the TPU compiler is told (docs/understand/pods.md has what each saves). Convolutions over small batches are
# otherwise cut up in space, and products with split weights into rounds of parts, both of which moves far more than it
# saves.
TPU_FLAGS: dict[str, bool | int] = {
    # Both, or neither has an effect.
    "xla_tpu_run_space_to_batch": False,
    "xla_tpu_run_space_to_batch_on_new_platforms": False,
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
}


def use_tpu_flags() -> None:
    """Sets `TPU_FLAGS` for this process, before a TPU is first touched; what LIBTPU_INIT_ARGS says already, stands."""
    said = os.environ.get("LIBTPU_INIT_ARGS", "")
    new = (f"--{name}={str(value).lower()}" for name, value in TPU_FLAGS.items() if f"--{name}=" not in said)
    os.environ["LIBTPU_INIT_ARGS"] = " ".join([said, *new]).strip()


def with_fast_convolutions(model: Model) -> Model:
    """The model for inference: on a CPU, in float32, its networks are those of `winograd.with_winograd`.

    The given model stays as it is. It may have shapes in the place of arrays.
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
