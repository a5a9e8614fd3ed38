"""`make test-shapes` checks annotated shapes and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import TypeCheckError

from xpsr_jax.data.captions import Caption
from xpsr_jax.data.config import DataConfig, DegradationConfig
from xpsr_jax.data.degradation import degrade
from xpsr_jax.data.examples import random_crop
from xpsr_jax.data.samples import Sample
from xpsr_jax.models.autoencoder import Autoencoder
from xpsr_jax.models.configs import AutoencoderConfig
from xpsr_jax.models.layers import flatten_tokens, nearest_resize, timestep_embedding


def test_layers_refuse_wrong_shapes() -> None:
    image = jnp.zeros((2, 6, 4, 3))
    assert flatten_tokens(image).shape == (2, 24, 3)
    assert nearest_resize(image, 12, 5).shape == (2, 12, 5, 3)
    assert timestep_embedding(jnp.zeros(2), 8).shape == (2, 8)
    with pytest.raises(TypeCheckError, match="parameter 'x'"):
        flatten_tokens(image[0])
    with pytest.raises(TypeCheckError, match="parameter 'x'"):
        nearest_resize(jnp.zeros((2, 6, 4, 3), jnp.int32), 12, 5)
    with pytest.raises(TypeCheckError, match="parameter 'timesteps'"):
        timestep_embedding(jnp.zeros((2, 1)), 8)


def test_the_autoencoder_refuses_wrong_shapes() -> None:
    """They are refused during tracing, as in jit, before anything is computed."""
    config = AutoencoderConfig(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
    )

    def traced(method, *inputs):
        return jax.eval_shape(lambda *x: getattr(Autoencoder(config, rngs=nnx.Rngs(0)), method)(*x), *inputs)

    image, latents, keys = jnp.zeros((2, 8, 6, 3)), jnp.zeros((2, 4, 3, 4)), jax.random.split(jax.random.key(0), 3)
    assert traced("encode", image, keys[:2]).shape == latents.shape
    assert traced("decode", latents).shape == image.shape
    with pytest.raises(TypeCheckError, match="parameter 'image'"):
        traced("encode", latents)
    with pytest.raises(TypeCheckError, match="parameter 'key'"):
        traced("encode", image, keys)
    with pytest.raises(TypeCheckError, match="parameter 'latents'"):
        traced("decode", latents[0])


def test_the_data_refuse_wrong_shapes_and_dtypes() -> None:
    rng = np.random.default_rng(0)
    photograph, config = np.zeros((40, 50, 3), np.uint8), DataConfig(crop_size=32)
    assert random_crop(photograph, config, rng).shape == (32, 32, 3)
    with pytest.raises(TypeCheckError, match="parameter 'image'"):
        random_crop(photograph[..., 0], config, rng)
    with pytest.raises(TypeCheckError, match="parameter 'image'"):
        random_crop(photograph.astype(np.float32), config, rng)
    with pytest.raises(TypeCheckError, match="parameter 'hr'"):
        degrade(photograph, DegradationConfig(), rng)
    with pytest.raises(TypeCheckError, match="parameter 'image'"):
        Sample(photograph.astype(np.int32), Caption(), "a.png")
