"""Reading and writing config.json, and refused values. The released files are in test_full_size.py."""

import json

import pytest

from tests.models.golden import VECTORS
from xpsr_jax.errors import UserError
from xpsr_jax.models.configs import ControlNetConfig, UNetConfig
from xpsr_jax.models.parameters import parameters
from xpsr_jax.weights import rules
from xpsr_jax.weights.networks import AUTOENCODER, CONTROLNET, TEXT_ENCODER, UNET, abstract, parse_config, read_config

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


@pytest.mark.parametrize(
    ("network", "changed", "problem"),
    [
        (UNET, {"layers_per_block": 10**9}, "layers_per_block must be from 1 to 32, not 1000000000"),
        (UNET, {"layers_per_block": 10**30}, "layers_per_block must be a finite number below 2"),
        (UNET, {"layers_per_block": 32, "transformer_layers_per_block": 32}, "give more than 128 layers"),
        (UNET, {"layers_per_block": [2, 2, 2, 1]}, r"layers_per_block must be a whole number, not \[2, 2, 2, 1\]"),
        (UNET, {"transformer_layers_per_block": [[1]] * 4}, r"transformer_layers_per_block must be a whole number"),
        (UNET, {"block_out_channels": [32] * 9}, "block_out_channels must have 1 to 8 entries, not 9"),
        (UNET, {"block_out_channels": 3}, "block_out_channels must be a list, not 3"),
        (UNET, {"up_block_types": ["UpBlock2D"]}, "up_block_types must have one entry per level"),
        (CONTROLNET, {"attention_head_dim": [8, 8, 8, 0]}, r"attention_head_dim\[3\] must be from 1 to"),
        (CONTROLNET, {"norm_eps": float("nan")}, "norm_eps must be a finite number below 2.64, not NaN"),
        (CONTROLNET, {"fusion": "sfb"}, 'fusion must be one of "sfa", "serial", "high", "low", not "sfb"'),
        (CONTROLNET, {"down_block_types": [1] * 4}, r"down_block_types\[0\] must be a text"),
        (AUTOENCODER, {"scaling_factor": -1}, "scaling_factor must be above 0, not -1"),
        (AUTOENCODER, {"scaling_factor": None}, "scaling_factor must be a number, not null"),
        (TEXT_ENCODER, {"num_hidden_layers": 0}, "num_hidden_layers must be from 1 to 64, not 0"),
        (TEXT_ENCODER, {"hidden_act": ["gelu"]}, 'hidden_act must be "quick_gelu" or "gelu"'),
    ],
)
def test_impossible_values_are_named(network, changed, problem):
    with pytest.raises(UserError, match=problem) as caught:
        parse_config(network, network.config().to_json() | changed, "a/config.json")
    assert str(caught.value).startswith("a/config.json: ") and "\n" not in str(caught.value)


def test_a_list_of_equal_values_is_one_value():
    """diffusers allows one value for all levels, or a list with one per level."""
    lists = {"transformer_layers_per_block": [1] * 4, "layers_per_block": [2] * 4, "only_cross_attention": [False] * 4}
    config = UNetConfig.from_json(UNetConfig().to_json() | lists | {"attention_head_dim": [8] * 4})
    assert config == UNetConfig(attention_head_dim=(8,) * 4)
    assert config.heads == UNetConfig().heads


def test_one_key_marks_a_stock_unet():
    """A released config.json does not have it, which means Conditional Attention."""
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
