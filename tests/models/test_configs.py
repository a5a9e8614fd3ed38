"""config.json in and out, and what is refused (the released files: test_full_size.py)."""

import json

import pytest

from tests.models.golden import VECTORS
from xpsr_jax.models.configs import ControlNetConfig, UNetConfig
from xpsr_jax.weights import rules
from xpsr_jax.weights.networks import AUTOENCODER, CONTROLNET, TEXT_ENCODER, UNET, abstract, parameters, read_config

STOCK = {
    "unet_odd_size": UNET,
    "unet_two_levels": UNET,
    "unet_sd21": UNET,
    "controlnet_odd_size": CONTROLNET,
    "controlnet_two_levels": CONTROLNET,
    "controlnet_sd21": CONTROLNET,
    "autoencoder_three_levels": AUTOENCODER,
    "autoencoder_four_levels": AUTOENCODER,
    "text_encoder_quick_gelu": TEXT_ENCODER,
    "text_encoder_gelu": TEXT_ENCODER,
    "text_encoder_sd21": TEXT_ENCODER,
}


@pytest.mark.parametrize("name", STOCK)
def test_diffusers_and_transformers_files_survive_a_round_trip(name):
    config = read_config(STOCK[name], VECTORS / "stock" / name)
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


def test_unsupported_values_are_all_named():
    config = UNetConfig().to_json() | {"class_embed_type": "timestep", "act_fn": "gelu", "colour": "blue"}
    with pytest.raises(ValueError) as error:
        UNetConfig.from_json(config)
    for part in ("class_embed_type='timestep'", "act_fn='gelu'", "colour='blue' (unknown key)"):
        assert part in str(error.value)


def test_stock_unet_is_said_by_one_key():
    """A released config.json lacks it, and means Conditional Attention."""
    stock = UNetConfig(conditional_attention=False)
    assert UNetConfig.from_json(stock.to_json()) == stock
    released = {key: value for key, value in UNetConfig().to_json().items() if key != "conditional_attention"}
    assert UNetConfig.from_json(released).conditional_attention


def test_rrdb_has_the_released_keys():
    """Two blocks of three dense blocks of five convolutions, growth 32, after the image encoder's first convolution."""
    with_rrdb, without = (
        {rules.torch_key(path): rules.torch_shape(path, leaf.shape) for path, leaf in parameters(module).items()}
        for module in (abstract(CONTROLNET, ControlNetConfig(use_rrdb=use)) for use in (True, False))
    )
    expected = {}
    for block, dense, conv in ((b, d, c) for b in range(2) for d in (1, 2, 3) for c in range(1, 6)):
        key = f"controlnet_cond_embedding.preprocesser.{block}.rdb{dense}.conv{conv}"
        out = 16 if conv == 5 else 32
        expected |= {f"{key}.weight": (out, 16 + 32 * (conv - 1), 3, 3), f"{key}.bias": (out,)}
    assert {key: shape for key, shape in with_rrdb.items() if key not in without} == expected
