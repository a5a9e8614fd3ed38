"""Stable Diffusion 2.1 and XPSR on it: linear projections, and heads for each level (tests/vectors/README.md).

Full-size networks are checked as shapes only, from their own config.json files. A small network of the same kind is
compared with PyTorch.
"""

import dataclasses
import hashlib
import json
import math

import pytest
from flax import nnx

import xpsr_jax
from tests.models.golden import VECTORS, assert_close, read, under
from xpsr_jax.config import load_config
from xpsr_jax.models.configs import ControlNetConfig, UNetConfig
from xpsr_jax.models.parameters import parameters
from xpsr_jax.models.transformer import Transformer
from xpsr_jax.weights import rules
from xpsr_jax.weights.model_folder import load_schedule
from xpsr_jax.weights.networks import AUTOENCODER, CONTROLNET, TEXT_ENCODER, UNET, abstract, read_config

FOLDER = VECTORS / "sd21"
# Tensors, parameters and digest of the same networks in PyTorch. tests/torch/test_live_sd21.py checks these values.
STOCK = {
    "unet": (686, 865_910_724, "102cedebfb24e477a06ae61809735ebaa75f361e6549862d432f445ef996fd26"),
    "controlnet": (340, 364_228_240, "d6b4d1d4c08cf7d67debfc49ede7c5a7605f46c31444e59bf370bded3c589f91"),
    "vae": (248, 83_653_863, "a8eb7356226250e756201865679f4127b544badce9a66957f83afdbf731c2f37"),
    "text_encoder": (372, 340_387_840, "ed8ac14c6009c58f16515860fa1c070e48548bc2b16204fad3f044782a4f068e"),
}


def summary(shapes):
    """Number of tensors, of parameters, and the SHA-256 of all keys with their shapes."""
    lines = "\n".join(sorted(f"{key} {list(shape)}" for key, shape in shapes.items()))
    return len(shapes), sum(map(math.prod, shapes.values())), hashlib.sha256(lines.encode()).hexdigest()


def shapes(network, config, **options):
    """PyTorch's shapes by PyTorch's keys, made from our parameters."""
    leaves = parameters(abstract(network, config, **options))
    return {rules.torch_key(p, network.names): rules.torch_shape(p, leaf.shape) for p, leaf in leaves.items()}


@pytest.fixture(scope="module")
def unet():
    return read_config(UNET, FOLDER / "unet")


@pytest.mark.parametrize("name", STOCK)
def test_exactly_the_stock_keys_and_shapes(name, unet):
    configs = {
        "unet": lambda: (UNET, dataclasses.replace(unet, conditional_attention=False)),
        "controlnet": lambda: (CONTROLNET, ControlNetConfig.like_unet(unet, fusion="high")),
        "vae": lambda: (AUTOENCODER, read_config(AUTOENCODER, FOLDER / "vae")),
        "text_encoder": lambda: (TEXT_ENCODER, read_config(TEXT_ENCODER, FOLDER / "text_encoder")),
    }
    assert summary(shapes(*configs[name]())) == STOCK[name]


def test_the_shipped_config_equals_the_published_one(unet):
    """Its networks are those of the published folders."""
    networks = load_config("configs/sd21.py").networks
    assert networks.unet == unet
    assert networks.text_encoder == read_config(TEXT_ENCODER, FOLDER / "text_encoder")
    assert networks.autoencoder == read_config(AUTOENCODER, FOLDER / "vae")
    assert networks.schedule == load_schedule(FOLDER / "scheduler")
    assert networks.schedule.prediction_type == "v_prediction"


def test_upcast_attention_may_be_null():
    data = json.loads((FOLDER / "unet" / "config.json").read_text()) | {"upcast_attention": None}
    config = UNetConfig.from_json(data)
    assert config.upcast_attention is None and config.to_json()["upcast_attention"] is None


def test_xpsr_on_it_has_the_released_keys(unet, vectors):
    """At full size. Shapes differ only in linear projections and in texts with 1024 channels."""
    released = json.loads((vectors / "keys_full.json").read_text())
    configs = {"unet": (UNET, unet), "controlnet": (CONTROLNET, ControlNetConfig.like_unet(unet))}
    for name, (network, config) in configs.items():
        options = {"with_constraint_heads": True} if name == "controlnet" else {}
        found = shapes(network, config, **options)
        assert found.keys() == released[name].keys()
        for key, shape in found.items():
            expected = released[name][key]
            if "attentions" in key and ("proj_in.weight" in key or "proj_out.weight" in key):
                expected = expected[:2]
            elif expected[1:] == [768]:
                expected = [expected[0], 1024]
            assert list(shape) == expected, key


@pytest.mark.parametrize("name", ["unet", "controlnet"])
def test_every_transformer_of_a_level_has_its_heads(name, unet):
    """All heads have 64 channels, in SFA's three branches and in Conditional Attention."""
    network, config = {"unet": (UNET, unet), "controlnet": (CONTROLNET, ControlNetConfig.like_unet(unet))}[name]
    transformers = [
        (path, module)
        for path, module in nnx.iter_modules(abstract(network, config))
        if isinstance(module, Transformer)
    ]
    assert len(transformers) == {"unet": 7 + 9 + 12, "controlnet": 3 * 7}[name]
    for path, module in transformers:
        for block in module.transformer_blocks:
            for attend in (block.attn1, block.attn2):
                assert attend.to_q.out_features == 64 * attend.heads, path


SMALL = VECTORS / "sd21_small"


@nnx.jit
def run_small(unet, controlnet, latents, timesteps, high, low, image, scale):
    steering = controlnet(latents, timesteps, high, low, controlnet.encode_image(image), scale=scale)
    residuals = {f"residuals.{i}": residual for i, residual in enumerate(steering.residuals)}
    prediction = unet(latents, timesteps, high, steering.residuals, steering.mid)
    return residuals | {"mid": steering.mid, "prediction": prediction}


@pytest.mark.soak
def test_xpsr_on_a_small_network_equals_pytorch():
    io = read(SMALL / "io.safetensors")
    unet, controlnet = xpsr_jax.load_networks(SMALL)
    assert unet.config.use_linear_projection and controlnet.config.heads == (1, 2, 4)
    assert_close(run_small(unet, controlnet, **under("in.", io)), under("out.", io), 3e-5)  # measured: 5.8e-6
