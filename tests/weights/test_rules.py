"""Paths and layouts: exact keys at full size in both directions, and one error that lists every problem."""

import dataclasses
import json

import numpy as np
import pytest

from xpsr_jax.models.configs import AutoencoderConfig, TextEncoderConfig
from xpsr_jax.models.parameters import parameters
from xpsr_jax.weights import rules
from xpsr_jax.weights.networks import AUTOENCODER, CONTROLNET, TEXT_ENCODER, UNET, abstract
from xpsr_jax.weights.tensors import Tensor, WeightsError


def lazy(arrays):
    return {key: Tensor.of(key, array) for key, array in arrays.items()}


@pytest.mark.parametrize("network", [UNET, CONTROLNET], ids=lambda network: network.subfolder)
def test_full_size_keys_and_shapes_are_the_released_ones(network, vectors):
    config = network.config.from_json(json.loads((vectors / f"{network.subfolder}_config_full.json").read_text()))
    options = {"with_constraint_heads": True} if network is CONTROLNET else {}
    shapes = {path: param.shape for path, param in parameters(abstract(network, config, **options)).items()}
    released = json.loads((vectors / "keys_full.json").read_text())[network.subfolder]
    ours = {rules.torch_key(path): rules.torch_shape(path, shape) for path, shape in shapes.items()}
    assert ours == {key: tuple(shape) for key, shape in released.items()}

    # And back: every released key has a path, and its tensor has the network's shape.
    def unread():
        raise AssertionError("matching names and shapes must not read anything")

    file = {key: Tensor(key, tuple(shape), np.dtype(np.float32), unread) for key, shape in released.items()}
    matched = rules.match(file, shapes, network.names, where="test")
    assert {path: tensor.shape for path, tensor in matched.items()} == shapes


@pytest.mark.parametrize(
    ("network", "config", "keys"),
    [
        (
            AUTOENCODER,
            AutoencoderConfig(),
            {
                "encoder.mid_block.attentions.0.to_out.0.weight": (512, 512),
                "encoder.mid_block.attentions.0.group_norm.weight": (512,),
                "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (256, 128, 1, 1),
                "decoder.up_blocks.0.upsamplers.0.conv.bias": (512,),
                "post_quant_conv.weight": (4, 4, 1, 1),
            },
        ),
        (
            TEXT_ENCODER,
            TextEncoderConfig(),
            {
                "text_model.embeddings.token_embedding.weight": (49408, 768),
                "text_model.embeddings.position_embedding.weight": (77, 768),
                "text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
                "text_model.encoder.layers.0.self_attn.out_proj.bias": (768,),
                "text_model.final_layer_norm.weight": (768,),
            },
        ),
    ],
    ids=["vae", "text_encoder"],
)
def test_stock_keys_and_shapes_at_full_size(network, config, keys):
    shapes = parameters(abstract(network, config))
    ours = {rules.torch_key(path, network.names): rules.torch_shape(path, p.shape) for path, p in shapes.items()}
    # Counts of tensors in Stable Diffusion 1.5's own files, without position_ids.
    assert len(ours) == len(shapes) == {"vae": 248, "text_encoder": 196}[network.subfolder]
    assert {key: ours[key] for key in keys} == keys


def test_layout_changes_are_views_and_reversible():
    rng = np.random.default_rng(0)
    for path, shape in {
        "conv_in.kernel": (3, 3, 4, 8),
        "mid_block.attentions.0.transformer_blocks.0.ff.proj.kernel": (8, 64),
        "conv_norm_out.scale": (8,),
        "embeddings.token_embedding.embedding": (10, 8),
    }.items():
        array = rng.standard_normal(shape, dtype=np.float32)
        _, theirs = rules.to_torch(path, array)
        assert theirs.shape == rules.torch_shape(path, shape)
        assert np.shares_memory(theirs, array)
        np.testing.assert_array_equal(rules.to_ours(path, theirs), array)
    kernel = rng.standard_normal((3, 5, 2, 4), dtype=np.float32)
    _, theirs = rules.to_torch("conv_in.kernel", kernel)
    assert theirs[1, 0, 2, 3] == kernel[2, 3, 0, 1]


def test_renames_match_whole_parts_only():
    assert rules.torch_key("a.to_out.kernel") == "a.to_out.0.weight"
    assert rules.torch_key("a.not_to_out.kernel") == "a.not_to_out.weight"
    assert rules.torch_key("to_outer.bias") == "to_outer.bias"
    assert rules.torch_key("conv_degradation.11.kernel") == "conv_degradation.11.0.weight"
    assert rules.torch_key("conv_degradation_mid.bias") == "conv_degradation_mid.0.bias"
    assert rules.torch_key("a.off.proj.kernel") == "a.off.proj.weight"


def test_one_error_lists_every_problem():
    shapes = {"conv_in.kernel": (3, 3, 4, 8), "conv_in.bias": (8,), "norm.scale": (8,), "norm.bias": (8,)}
    file = lazy(
        {
            "conv_in.weight": np.zeros((8, 4, 1, 1), np.float32),
            "conv_in.bias": np.array([1, np.nan] * 4, np.float32),
            "norm.weight": np.zeros(8, np.int64),
            "norm.running_mean": np.zeros(3, np.float32),
        }
    )
    with pytest.raises(WeightsError) as error:
        rules.match(file, shapes, rules.UNET_NAMES, where="some/folder")
    assert error.value.problems == (
        "wrong shape: conv_in.weight is (8, 4, 1, 1), expected (8, 4, 3, 3)",
        "wrong type: norm.weight is int64, expected one of float64, float32, float16, bfloat16",
        "unknown: norm.running_mean (3,); the network has no such tensor",
        "missing: norm.bias (8,)",
        "NaN or infinity: in conv_in.bias (8,)",
    )
    assert str(error.value).startswith("some/folder: these weights cannot be used, 5 problems:\n")
    assert all(problem in str(error.value) for problem in error.value.problems)


def test_old_names_of_the_autoencoder():
    channels = 8
    rng = np.random.default_rng(1)
    at = "encoder.mid_block.attentions.0"
    shapes = {f"{at}.{name}.kernel": (channels, channels) for name in ("to_q", "to_k", "to_v", "to_out")}
    current = {rules.torch_key(path): rng.standard_normal((channels, channels), dtype=np.float32) for path in shapes}
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for as_convolution in (False, True):
        file = {}
        for key, array in current.items():
            name = key.removeprefix(f"{at}.").removesuffix(".weight")
            file[f"{at}.{old[name]}.weight"] = array[:, :, None, None] if as_convolution else array
        matched = rules.match(lazy(file), shapes, rules.AUTOENCODER_NAMES, where="test")
        # They are written with the current names.
        back = dict(rules.to_torch(path, tensor.read()) for path, tensor in matched.items())
        assert back.keys() == current.keys()
        for key, array in current.items():
            np.testing.assert_array_equal(back[key], array)
    # The old and the current name of the same tensor in one file are an error.
    twice = lazy({**current, f"{at}.query.weight": current[f"{at}.to_q.weight"]})
    with pytest.raises(WeightsError, match=r"present twice: .*query\.weight \(current name .*to_q\.weight\)"):
        rules.match(twice, shapes, rules.AUTOENCODER_NAMES, where="test")
    # A 1x1 convolution instead of any other linear layer is an error.
    kernel = lazy({"proj_in.weight": np.zeros((8, 8, 1, 1), np.float32)})
    with pytest.raises(WeightsError, match="wrong shape"):
        rules.match(kernel, {"proj_in.kernel": (8, 8)}, rules.AUTOENCODER_NAMES, where="test")


def test_old_and_new_names_of_the_text_encoder():
    shapes = {"final_layer_norm.scale": (4,), "embeddings.position_embedding.embedding": (77, 4)}
    for prefix in ("text_model.", ""):
        file = lazy(
            {
                f"{prefix}final_layer_norm.weight": np.ones(4, np.float32),
                f"{prefix}embeddings.position_embedding.weight": np.ones((77, 4), np.float32),
                f"{prefix}embeddings.position_ids": np.arange(77)[None],
            }
        )
        matched = rules.match(file, shapes, rules.TEXT_ENCODER_NAMES, where="test")
        assert [rules.torch_key(path, rules.TEXT_ENCODER_NAMES) for path in matched] == [
            "text_model.final_layer_norm.weight",
            "text_model.embeddings.position_embedding.weight",
        ]


@pytest.mark.parametrize(
    ("fusion", "skipped"),
    [
        ("sfa", []),
        ("serial", ["attentions_connect"]),
        ("high", ["attentions_lowlevel", "attentions_connect"]),
        ("low", ["attentions", "attentions_connect"]),
    ],
)
def test_only_parts_that_are_not_built_are_skipped(fusion, skipped, vectors):
    config = CONTROLNET.config.from_json(json.loads((vectors / "xpsr" / "controlnet_config.json").read_text()))

    def shapes(fusion, heads):
        module = abstract(CONTROLNET, dataclasses.replace(config, fusion=fusion), with_constraint_heads=heads)
        return {path: param.shape for path, param in parameters(module).items()}

    file = {
        rules.torch_key(path): Tensor.of(rules.torch_key(path), np.zeros(rules.torch_shape(path, shape), np.float32))
        for path, shape in shapes("sfa", True).items()
    }
    wanted = shapes(fusion, False)
    matched = rules.match(file, wanted, rules.CONTROLNET_NAMES, where="test")
    left_out = file.keys() - {rules.torch_key(path) for path in matched}
    parts = ["conv_degradation", "conv_degradation_mid", "to_rgbs", *skipped]
    assert left_out == {key for key in file if set(parts) & set(key.split("."))}
    # Tensors of parts that are built are never skipped.
    key = "down_blocks.0.attentions.7.norm.weight"
    if fusion != "low":
        with pytest.raises(WeightsError, match=f"unknown: {key}"):
            rules.match(
                {**file, key: dataclasses.replace(file["conv_in.bias"], name=key)},
                wanted,
                rules.CONTROLNET_NAMES,
                where="test",
            )
