"""A model that restores 8 x 8 pixels to 32 x 32 very fast. All networks are small, and all parameters are random."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import CLIPTokenizer

import xpsr_jax
from xpsr_jax.config import Sampling
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.models.autoencoder import Autoencoder
from xpsr_jax.models.configs import AutoencoderConfig, ControlNetConfig, TextEncoderConfig, UNetConfig
from xpsr_jax.models.controlnet import ControlNet
from xpsr_jax.models.text_encoder import TextEncoder
from xpsr_jax.models.unet import UNet
from xpsr_jax.weights.model_folder import Model

SAMPLING = Sampling(steps=2, guidance_scale=1.5, process_size=32)


AUTOENCODER = AutoencoderConfig(
    block_out_channels=(4, 4, 8),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=1,
    norm_num_groups=4,
)
TEXT_ENCODER = TextEncoderConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)


def tiny_model(autoencoder: AutoencoderConfig = AUTOENCODER, text_encoder: TextEncoderConfig = TEXT_ENCODER) -> Model:
    """Latents have a quarter of the image's size. No parameter is zero, so every input has an effect."""
    unet = UNetConfig(
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=text_encoder.hidden_size,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    widths = (4, 4, 8)[-len(autoencoder.block_out_channels) :]
    controlnet = ControlNetConfig.like_unet(unet, conditioning_embedding_out_channels=widths)
    return Model(
        unet=random_network(lambda rngs: UNet(unet, rngs=rngs)),
        controlnet=random_network(lambda rngs: ControlNet(controlnet, rngs=rngs)),
        autoencoder=random_network(lambda rngs: Autoencoder(autoencoder, rngs=rngs)),
        text_encoder=random_network(lambda rngs: TextEncoder(text_encoder, rngs=rngs)),
        tokenizer=CLIPTokenizer.from_pretrained(Path(xpsr_jax.__file__).parent / "assets" / "tokenizer"),
        schedule=Schedule(),
        defaults=SAMPLING,
        note="It is a test's.",
    )


def random_network(make):
    """Fills a network by numpy, because compiling the real initialisers takes minutes."""
    network = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    rng = np.random.default_rng(0)

    def values(path, leaf):
        deviation = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if path[-2].key == "kernel" else 0.5
        mean = float(path[-2].key == "scale")
        return jnp.asarray(mean + deviation * rng.standard_normal(leaf.shape), jnp.float32)

    state = nnx.state(network, nnx.Param)
    nnx.update(network, jax.tree_util.tree_map_with_path(values, state))
    return network
