"""Predicting with features kept from an earlier step computes only the outermost layers, with the same result."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.inference.tiny_model import random_network
from tests.models.golden import error
from xpsr_jax.models.configs import ControlNetConfig, UNetConfig
from xpsr_jax.models.controlnet import ControlNet
from xpsr_jax.models.unet import UNet

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RNG = np.random.default_rng(0)
CONFIG = UNetConfig(
    block_out_channels=(8, 8),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=2,
    cross_attention_dim=8,
    attention_head_dim=2,
    norm_num_groups=4,
)
LATENTS, OTHER = (jnp.asarray(RNG.standard_normal((2, 7, 8, 4), np.float32)) for _ in range(2))
# Two high-level texts per sample, as in guidance, and one low-level text.
HIGH, LOW = (jnp.asarray(RNG.standard_normal((n, 5, 8), np.float32)) for n in (4, 2))


@pytest.fixture(scope="module")
def unet():
    return random_network(lambda rngs: UNet(CONFIG, rngs=rngs))


@pytest.fixture(scope="module")
def control():
    controlnet = random_network(
        lambda rngs: ControlNet(
            ControlNetConfig.like_unet(CONFIG, conditioning_embedding_out_channels=(4, 4, 8)), rngs=rngs
        )
    )
    image = jnp.asarray(RNG.random((2, 28, 32, 3), np.float32))

    @nnx.jit
    def run(controlnet, latents, image):
        return controlnet(latents, jnp.full(2, 600), HIGH, LOW, controlnet.encode_image(image))

    return run(controlnet, LATENTS, image)


def predictions(unet, control, layers, *, text):
    """Predictions of the whole network at t = 600, and from its kept features, for the same input and for another."""

    @nnx.jit
    def run(unet, latents, other):
        high = unet.project_text(HIGH) if text == "projected" else HIGH
        residuals = (control.residuals, control.mid) if control else (None, None)
        whole, kept = unet.predict_and_keep(latents, jnp.full(2, 600), high, *residuals, outer_layers=layers)
        again = unet.predict_from_kept(latents, jnp.full(2, 600), high, kept, outer_layers=layers)
        later = unet.predict_from_kept(other, jnp.full(2, 550), high, kept, outer_layers=layers)
        return whole, again, later, unet(latents, jnp.full(2, 600), high, *residuals)

    return run(unet, LATENTS, OTHER)


@pytest.mark.parametrize(
    ("layers", "text"),
    [pytest.param(1, "embedding", marks=pytest.mark.soak), pytest.param(3, "projected", marks=pytest.mark.more)],
)
def test_at_the_same_input_it_equals_the_whole_network(unet, control, layers, text):
    whole, again, later, called = predictions(unet, control, layers, text=text)
    assert whole.shape == (4, 7, 8, 4)
    assert error(again, whole) <= 1e-6
    assert error(whole, called) <= 1e-6
    assert error(later, whole) > 1e-2


@pytest.mark.more
def test_a_stock_network_has_no_residuals_to_keep():
    stock = random_network(lambda rngs: UNet(dataclasses.replace(CONFIG, conditional_attention=False), rngs=rngs))
    whole, again, _, _ = predictions(stock, None, 2, text="projected")
    assert error(again, whole) <= 1e-6


@pytest.mark.more
@pytest.mark.parametrize("layers", [0, 4])
def test_only_layers_of_the_finest_level(unet, control, layers):
    with pytest.raises(ValueError, match="between 1 and 3 layers"):
        predictions(unet, control, layers, text="projected")


@pytest.mark.more
def test_neither_the_deep_layers_nor_the_controlnet_are_computed(unet, control):
    """Weights with a gradient: the first convolution, the time embedding, one layer of the decoder, the output."""
    graph, state = nnx.split(unet)
    high, t = HIGH, jnp.full(2, 600)
    residuals = control.residuals, control.mid
    kept = jax.eval_shape(lambda: unet.predict_and_keep(LATENTS, t, high, *residuals)[1])
    kept = jax.tree.map(lambda feature: jnp.asarray(RNG.standard_normal(feature.shape, np.float32)), kept)

    def loss(state):
        return nnx.merge(graph, state).predict_from_kept(LATENTS, t, high, kept).std()

    gradients = nnx.to_flat_state(jax.jit(jax.grad(loss))(state))
    used = {path for path, leaf in gradients if np.abs(leaf[...]).max() > 0}
    assert {path[0] for path in used} == {"conv_in", "time_embedding", "up_blocks", "conv_norm_out", "conv_out"}
    assert {path[1:4:2] for path in used if path[0] == "up_blocks"} == {(1, 2)}
