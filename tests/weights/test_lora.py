"""LoRA files of every naming are merged as diffusers merges them. Other kinds are refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from xpsr_jax.errors import UserError
from xpsr_jax.weights.lora import with_loras
from xpsr_jax.weights.lora_files import read_lora, split_strength
from xpsr_jax.weights.networks import TEXT_ENCODER, UNET, Weights, open_folder
from xpsr_jax.weights.sources import Source
from xpsr_jax.weights.tensors import Tensor, WeightsError

NAMES = ("kohya", "locon", "diffusers", "peft")
STRENGTH = 0.7


@pytest.fixture(scope="module")
def halves(vectors) -> Source:
    """The networks in float16, as in their files."""
    stock = vectors / "stock"
    folders = {"unet": stock / "unet_odd_size", "text_encoder": stock / "text_encoder_quick_gelu"}
    opened = {
        "unet": open_folder(UNET, folders["unet"]),
        "text_encoder": open_folder(TEXT_ENCODER, folders["text_encoder"]),
    }
    return Source(folders, {name: lambda name=name: opened[name] for name in opened})


@pytest.fixture(scope="module")
def source(halves) -> Source:
    """The same networks in float32."""

    def whole(name: str) -> Weights:
        weights = halves.networks[name]()
        tensors = {key: Tensor.of(key, t.read().astype(np.float32)) for key, t in weights.tensors.items()}
        return Weights(weights.where, weights.config, tensors)

    return Source(halves.origins, {name: lambda name=name: whole(name) for name in halves.networks})


def read(source: Source) -> dict[str, np.ndarray]:
    opened = {name: network() for name, network in source.networks.items()}
    return {f"{name}/{key}": t.read() for name, weights in opened.items() for key, t in weights.tensors.items()}


@pytest.mark.parametrize("name", NAMES)
def test_merging_equals_diffusers(name, source, vectors):
    """Measured: equal. The tolerance allows PyTorch and numpy to differ in the last bit of weights up to 1.7."""
    golden = load_file(vectors / "lora" / "fused.safetensors")
    changed = {key.removeprefix(f"{name}/"): value for key, value in golden.items() if key.startswith(f"{name}/")}
    before, merged = read(source), with_loras(source, [(vectors / "lora" / f"{name}.safetensors", STRENGTH)])
    after = read(merged)
    assert before.keys() == after.keys() and {key.partition("/")[0] for key in changed} == {"unet", "text_encoder"}
    for key, value in after.items():
        if key in changed:
            assert np.abs(value - before[key]).max() > 1e-3
            np.testing.assert_allclose(value, changed[key], rtol=0, atol=1.2e-7)
        else:
            assert value.tobytes() == before[key].tobytes(), key
        assert value.dtype == before[key].dtype
    unet, text = (sum(key.startswith(part) for key in changed) for part in ("unet/", "text_encoder/"))
    file = vectors / "lora" / f"{name}.safetensors"
    assert merged.history == (f"LoRA {file}, strength 0.7: {unet} weights of unet/, {text} weights of text_encoder/",)


def test_several_loras_are_added(source, vectors):
    files = [vectors / "lora" / f"{name}.safetensors" for name in NAMES[:2]]
    before = read(source)
    both = read(with_loras(source, [(files[0], 0.5), (files[1], -1.0)]))
    one, other = read(with_loras(source, [(files[0], 0.5)])), read(with_loras(source, [(files[1], -1.0)]))
    for key, value in both.items():
        np.testing.assert_allclose(value, one[key] + other[key] - before[key], rtol=0, atol=1e-6)


def test_names_of_other_tools(source, vectors, tmp_path):
    """PEFT's own names, with its configuration file, and diffusers' earliest names for the text encoder."""
    tensors = load_file(vectors / "lora" / "peft.safetensors")
    expected = read(with_loras(source, [(vectors / "lora" / "peft.safetensors", 1.0)]))

    def same(renamed: dict[str, np.ndarray], file: Path, kind: str) -> None:
        save_file(renamed, file)
        after = read(with_loras(source, [(file, 1.0)]))
        chosen = [key for key in after if key.startswith(f"{kind}/")]
        assert all(after[key].tobytes() == expected[key].tobytes() for key in chosen)

    unet = {
        f"base_model.model.{key.removeprefix('unet.').replace('.weight', '.default.weight')}": value
        for key, value in tensors.items()
        if key.startswith("unet.")
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 5}))
    same(unet, tmp_path / "adapter_model.safetensors", "unet")
    text = {key: value for key, value in tensors.items() if key.startswith("text_encoder.") and "fc1" not in key}
    names = {"q_proj.lora_A": "to_q_lora.down", "q_proj.lora_B": "to_q_lora.up"}
    names |= {"out_proj.lora_A": "to_out_lora.down", "out_proj.lora_B": "to_out_lora.up"}
    old = {}
    for key, value in text.items():
        for current, before in names.items():
            if current in key:
                # These files have no alpha, so the rank is used.
                old[key.replace(current, before)] = value * np.float32(2.5 if before.endswith("up") else 1)
    save_file(old, tmp_path / "old.safetensors")
    after = read(with_loras(source, [(tmp_path / "old.safetensors", 1.0)]))
    key = "text_encoder/text_model.encoder.layers.0.self_attn.out_proj.weight"
    np.testing.assert_allclose(after[key], expected[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "LoKr"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_t2", "LoKr"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA"),
        ("unet.conv_in.lora_magnitude_vector", "DoRA"),
        ("lora_unet_mid_block_resnets_0_conv1.lora_mid.weight", "LoCon with a core of its own"),
        ("lora_unet_conv_in.oft_blocks", "OFT"),
        ("lora_unet_conv_in.diff", "whole differences"),
        ("unet.conv_in.lora_B.bias", "LoRA with biases"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "Stable Diffusion XL"),
        ("text_encoder_2.encoder.layers.0.mlp.fc1.lora_A.weight", "Stable Diffusion XL"),
        ("model.diffusion_model.out.2.weight", "not a known kind of LoRA; it holds model.diffusion_model.out.2.weight"),
    ],
)
def test_other_kinds_are_refused_by_name(key, kind, vectors, tmp_path):
    tensors = load_file(vectors / "lora" / "kohya.safetensors")
    save_file(tensors | {key: np.zeros((2, 2), np.float32)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match=kind):
        read_lora(tmp_path / "lora.safetensors")


def test_loras_that_do_not_fit_are_refused(source, vectors, tmp_path):
    file = tmp_path / "lora.safetensors"
    tensors = load_file(vectors / "lora" / "kohya.safetensors")
    down = next(key for key in tensors if key.startswith("lora_unet_") and key.endswith("lora_down.weight"))
    name = down.partition(".")[0]
    save_file(tensors | {down: tensors[down][:, :-1]}, file)
    with pytest.raises(WeightsError, match=rf"wrong shape: {name.removeprefix('lora_unet_')} is"):
        with_loras(source, [(file, 1.0)])
    save_file({key.replace("_0_", "_9_"): value for key, value in tensors.items()}, file)
    with pytest.raises(WeightsError, match="the LoRA is for another kind of unet"):
        with_loras(source, [(file, 1.0)])
    save_file({key: value for key, value in tensors.items() if key != down}, file)
    with pytest.raises(UserError, match=f"is incomplete: {name.removeprefix('lora_unet_')} has only alpha, up"):
        read_lora(file)
    only = Source({"unet": source.origins["unet"]}, {"unet": source.networks["unet"]})
    with pytest.raises(UserError, match="also changes the text encoder: name a source that has text_encoder/"):
        with_loras(only, [(vectors / "lora" / "kohya.safetensors", 1.0)])
    with pytest.raises(UserError, match=r"no\.safetensors is not a file"):
        read_lora(tmp_path / "no.safetensors")


def test_half_precision_is_kept(halves, vectors):
    after = read(with_loras(halves, [(vectors / "lora" / "locon.safetensors", STRENGTH)]))
    golden = load_file(vectors / "lora" / "fused.safetensors")
    for key, value in after.items():
        assert value.dtype == np.float16
        if (exact := golden.get(f"locon/{key}")) is not None:
            np.testing.assert_allclose(value.astype(np.float32), exact, rtol=2**-11, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.7", ("a.safetensors", 0.7)),
        ("owner/name:a.safetensors", ("owner/name:a.safetensors", 1.0)),
        ("owner/name:a.safetensors:-1e-1", ("owner/name:a.safetensors", -0.1)),
    ],
)
def test_a_file_and_its_strength(text, expected):
    assert split_strength(text) == expected


@pytest.mark.parametrize("text", [":0.7", "a:nan", "a:inf"])
def test_invalid_strengths_are_refused(text):
    with pytest.raises(UserError, match="name a file and its strength"):
        split_strength(text)
