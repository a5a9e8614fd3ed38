"""Stable Diffusion's own networks equal diffusers' and transformers', at several widths, depths, heads and odd sizes.

The networks are small and random (tests/vectors/README.md). XPSR's UNet without Conditional Attention is the stock
UNet. Its ControlNet with only the high-level caption and without heads is the stock ControlNet.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.marks import marked_more
from tests.models.golden import VECTORS, assert_close, error, read, under
from xpsr_jax.weights.networks import AUTOENCODER, CONTROLNET, TEXT_ENCODER, UNET, load_network, read_config

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def load(network, name, **changes):
    """A network of tests/vectors/stock with its inputs and outputs."""
    folder = VECTORS / "stock" / name
    config = dataclasses.replace(read_config(network, folder), **changes)
    io = read(folder / "io.safetensors")
    return load_network(network, folder, config=config), under("in.", io), under("out.", io)


@pytest.mark.parametrize("name", marked_more(["unet_odd_size", "unet_two_levels", "unet_sd21"], ["unet_odd_size"]))
def test_unet(name):
    unet, inputs, expected = load(UNET, name, conditional_attention=False)
    output = nnx.jit(lambda unet, latents, timesteps, high: unet(latents, timesteps, high))(unet, **inputs)
    assert_close({"prediction": output}, expected, 3e-5)  # measured: 9.3e-6


@pytest.mark.parametrize(
    "name", marked_more(["controlnet_odd_size", "controlnet_two_levels", "controlnet_sd21"], ["controlnet_odd_size"])
)
def test_controlnet(name):
    controlnet, inputs, expected = load(CONTROLNET, name, fusion="high", return_rgbs=False, use_latent_pred=False)

    @nnx.jit
    def run(controlnet, latents, timesteps, high, image, scale):
        return controlnet(latents, timesteps, high, None, controlnet.encode_image(image), scale=scale)

    output = run(controlnet, **inputs)
    assert output.latent_predictions == ()
    residuals = {f"residuals.{i}": residual for i, residual in enumerate(output.residuals)}
    assert_close(residuals | {"mid": output.mid}, expected, 2e-5)  # measured: 5.4e-6


@pytest.mark.parametrize("name", ["autoencoder_three_levels", "autoencoder_four_levels"])
def test_autoencoder(name):
    autoencoder, inputs, expected = load(AUTOENCODER, name)
    scaling = autoencoder.config.scaling_factor

    @nnx.jit
    def run(autoencoder, image, latents):
        return *autoencoder.moments(image), autoencoder.encode(image), autoencoder.decode(latents * scaling)

    mean, log_variance, mode, image = run(autoencoder, inputs["image"], inputs["latents"])
    assert_close({"mean": mean, "logvar": log_variance, "image": image}, expected, 3e-5)  # measured: 8.9e-6
    assert error(mode / scaling, expected["mean"]) <= 3e-5


@pytest.mark.parametrize("name", ["text_encoder_quick_gelu", "text_encoder_gelu", "text_encoder_sd21"])
def test_text_encoder(name):
    text_encoder, inputs, expected = load(TEXT_ENCODER, name)
    hidden = nnx.jit(lambda encoder, ids: encoder(ids))(text_encoder, inputs["token_ids"])
    assert hidden.dtype == jnp.float32
    assert_close({"hidden": hidden}, expected, 1e-5)  # measured: 2.3e-6


def test_autoencoder_samples_its_posterior():
    """Latents are mean + exp(logvar / 2) · noise, scaled. An image's noise comes from its own key."""
    autoencoder, inputs, expected = load(AUTOENCODER, "autoencoder_three_levels")
    keys = jax.random.split(jax.random.key(0), 2)
    encode = nnx.jit(lambda autoencoder, image, keys: autoencoder.encode(image, keys))
    samples = encode(autoencoder, inputs["image"], keys)
    latents = samples / autoencoder.config.scaling_factor
    noise = (latents - expected["mean"]) / np.exp(expected["logvar"] / 2)
    for one, key in zip(noise, keys, strict=True):
        assert error(one, np.asarray(jax.random.normal(key, one.shape))) <= 1e-5  # measured: 2.2e-6
