"""Model folders: round trips keep keys and bits, sources are merged, writing is atomic, and errors are clear."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xpsr_jax
from tests.weights.conftest import TINY_AUTOENCODER, random_tensors, write_network
from xpsr_jax.config import PAPER, RELEASED, Sampling
from xpsr_jax.diffusion.process import visited_timesteps
from xpsr_jax.errors import UserError
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.parameters import parameters
from xpsr_jax.training.conversion import open_weights
from xpsr_jax.weights.folders import read_folder
from xpsr_jax.weights.model_folder import (
    Model,
    load,
    load_defaults,
    load_networks,
    load_tokenizer,
    save,
    write_index,
)
from xpsr_jax.weights.networks import AUTOENCODER, CONTROLNET, NETWORKS, load_network
from xpsr_jax.weights.sources import merge, open_source
from xpsr_jax.weights.tensors import WeightsError

WEIGHTS = {name: f"{network.subfolder}/{network.stem}.safetensors" for name, network in NETWORKS.items()}


@pytest.fixture(scope="module")
def networks(released):
    return load_networks(released)


@pytest.fixture(scope="module")
def model(base, released):
    return load(base, released)


@pytest.fixture
def folder(base, released, tmp_path):
    """A complete model folder, which a test may damage."""
    target = tmp_path / "model"
    shutil.copytree(base, target)
    shutil.copytree(released, target, dirs_exist_ok=True)
    return target


def edit(file, change):
    """Applies `change` to the dict of a safetensors file's arrays."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def same_files(a, b):
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and first[k].tobytes() == second[k].tobytes() for k in first
    )


def test_saving_released_weights_keeps_keys_and_bits(networks, released, tmp_path):
    unet, controlnet = networks
    save({"unet": unet, "controlnet": controlnet}, tmp_path / "out")
    for name in ("unet", "controlnet"):
        assert same_files(tmp_path / "out" / WEIGHTS[name], released / WEIGHTS[name])
        # Every setting of the released config.json is in ours.
        theirs = json.loads((released / name / "config.json").read_text())
        ours = json.loads((tmp_path / "out" / name / "config.json").read_text())
        assert {key: ours.get(key) for key in theirs if key != "_diffusers_version"} == {
            key: value for key, value in theirs.items() if key != "_diffusers_version"
        }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_loaded_arrays_equal_the_file_in_our_layout(networks, released):
    unet, controlnet = networks
    file = load_file(released / WEIGHTS["unet"])
    np.testing.assert_array_equal(unet.conv_in.kernel[...], file["conv_in.weight"].transpose(2, 3, 1, 0))
    block = unet.up_blocks[1].pixel_attentions[0].transformer_blocks[0]
    at = "up_blocks.1.pixel_attentions.0.transformer_blocks.0"
    np.testing.assert_array_equal(block.ff.out.kernel[...], file[f"{at}.ff.net.2.weight"].T)
    np.testing.assert_array_equal(block.norm3.scale[...], file[f"{at}.norm3.weight"])
    heads = load_file(released / WEIGHTS["controlnet"])["conv_degradation.2.0.weight"]
    np.testing.assert_array_equal(controlnet.conv_degradation[2].kernel[...], heads.transpose(2, 3, 1, 0))


def test_requested_heads_and_fusion_are_built_and_saved(released, tmp_path):
    unet, serial = load_networks(released, jnp.bfloat16, fusion="serial", with_constraint_heads=False)
    assert unet.conv_in.dtype == unet.conv_in.kernel.dtype == jnp.bfloat16
    paths = parameters(serial).keys()
    assert not any({"conv_degradation", "conv_degradation_mid", "to_rgbs"} & set(path.split(".")) for path in paths)
    assert not any("attentions_connect" in path for path in paths)
    save({"controlnet": serial}, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "controlnet" / "config.json").read_text())
    assert (config["fusion"], config["use_latent_pred"], config["return_rgbs"]) == ("serial", False, False)
    again = load_network(CONTROLNET, tmp_path / "out" / "controlnet")
    assert again.config.fusion == "serial" and parameters(again).keys() == paths


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_round_trip_keeps_bits(dtype, released, tmp_path):
    compute = Compute(dtype=jnp.float32, param_dtype=dtype)
    controlnet = load_network(CONTROLNET, released / "controlnet", compute=compute)
    assert {param.dtype for param in parameters(controlnet).values()} == {jnp.dtype(dtype)}
    assert controlnet.conv_in.dtype == jnp.float32
    save({"controlnet": controlnet}, tmp_path / "out")
    before, after = load_file(released / WEIGHTS["controlnet"]), load_file(tmp_path / "out" / WEIGHTS["controlnet"])
    assert before.keys() == after.keys()
    assert all(after[key].tobytes() == before[key].astype(np.dtype(dtype)).tobytes() for key in before)


def test_a_complete_model_merged_from_two_sources(model, base, released):
    assert isinstance(model, Model)
    assert xpsr_jax.load is load and xpsr_jax.load_networks is load_networks
    assert not hasattr(model.controlnet, "conv_degradation")
    file = load_file(base / WEIGHTS["text_encoder"])
    embedding = model.text_encoder.embeddings.token_embedding.embedding[...]
    np.testing.assert_array_equal(embedding, file["text_model.embeddings.token_embedding.weight"])
    assert visited_timesteps(model.schedule, 4).tolist() == [751, 501, 251, 1]
    assert (model.defaults, model.note) == (PAPER, "")
    ids = model.tokenizer("a photo of a cat", padding="max_length", max_length=77)["input_ids"]
    assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407] and len(ids) == 77


def test_later_folders_take_precedence(base, released):
    found = merge([open_source(path) for path in (released, base)])
    assert found.origins["unet"] == released / "unet" and found.origins["autoencoder"] == base / "vae"
    assert merge([open_source(base)] * 2).origins == open_source(base).origins
    for paths in ((released, base, base), (released, released, base)):
        with pytest.raises(UserError, match="is not used: later ones also have"):
            load(*paths)
        with pytest.raises(UserError, match="is not used: later ones also have"):
            open_weights(paths)


def test_a_complete_model_is_saved_and_loaded(model, base, released, tmp_path):
    defaults = dataclasses.replace(RELEASED, steps=7, negative_low=None)
    saved = dataclasses.replace(model, defaults=defaults, note="It knows 42 photographs.")
    save(saved, tmp_path / "model")
    assert same_files(tmp_path / "model" / WEIGHTS["autoencoder"], base / WEIGHTS["autoencoder"])
    assert same_files(tmp_path / "model" / WEIGHTS["text_encoder"], base / WEIGHTS["text_encoder"])
    again = load(tmp_path / "model")
    assert (again.defaults, again.note, again.schedule) == (defaults, saved.note, model.schedule)
    for name in NETWORKS:
        ours, before = parameters(getattr(again, name)), parameters(getattr(model, name))
        assert all(np.array_equal(ours[path][...], param[...]) for path, param in before.items())
    text = "Two dogs, 8k!"
    assert again.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKL"] and index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    # Older releases of transformers read these.
    assert (tmp_path / "model" / "tokenizer" / "merges.txt").read_text().startswith("#version")
    assert len(json.loads((tmp_path / "model" / "tokenizer" / "vocab.json").read_text())) == 49408


def test_components_can_be_copied_from_folders_and_written_in_shards(networks, base, released, tmp_path):
    parts = {"unet": networks[0], "controlnet": released / "controlnet", "autoencoder": str(base / "vae")}
    save(parts, tmp_path / "out", shard_bytes=1_000_000)
    assert len(list((tmp_path / "out" / "unet").glob("*.safetensors"))) == 3
    assert (tmp_path / "out" / WEIGHTS["autoencoder"]).read_bytes() == (base / WEIGHTS["autoencoder"]).read_bytes()
    merged = {
        key: array
        for file in (tmp_path / "out" / "unet").glob("*.safetensors")
        for key, array in load_file(file).items()
    }
    before = load_file(released / WEIGHTS["unet"])
    assert merged.keys() == before.keys() and all(np.array_equal(merged[key], before[key]) for key in before)
    assert {t.shape for t in read_folder(tmp_path / "out" / "unet").values()} == {a.shape for a in before.values()}


def test_old_names_of_the_autoencoder_give_the_same_network(tmp_path):
    tensors = random_tensors(AUTOENCODER, TINY_AUTOENCODER)
    write_network(AUTOENCODER, TINY_AUTOENCODER, tensors, tmp_path / "current")
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for key, array in tensors.items():
        renamed = key
        for current, before in names.items():
            renamed = renamed.replace(current, before)
        old[renamed] = array[:, :, None, None] if renamed != key and array.ndim == 2 else array
    assert len(tensors.keys() - old.keys()) == 16
    write_network(AUTOENCODER, TINY_AUTOENCODER, old, tmp_path / "old")
    ours = parameters(load_network(AUTOENCODER, tmp_path / "current"))
    theirs = parameters(load_network(AUTOENCODER, tmp_path / "old"))
    assert all(np.array_equal(theirs[path][...], param[...]) for path, param in ours.items())


def test_one_error_lists_all_problems_of_a_network(folder):
    def spoil(tensors):
        tensors["conv_out.weight"] = tensors["conv_out.weight"][:, :, :1, :1].copy()
        tensors["conv_in.extra"] = tensors.pop("conv_in.bias")
        tensors["conv_norm_out.bias"][3] = np.nan

    edit(folder / WEIGHTS["unet"], spoil)
    with pytest.raises(WeightsError) as error:
        load(folder)
    assert set(error.value.problems) == {
        "wrong shape: conv_out.weight is (4, 16, 1, 1), expected (4, 16, 3, 3)",
        "unknown: conv_in.extra (16,); the network has no such tensor",
        "missing: conv_in.bias (16,)",
        "NaN or infinity: in conv_norm_out.bias (16,)",
    }
    assert str(error.value).startswith(str(folder / "unet"))


def test_infinity_alone_is_found_too(folder):
    def spoil(tensors):
        for key in ("conv_in.weight", "mid_block.resnets.0.norm1.bias"):
            tensors[key].flat[-1] = -np.inf

    edit(folder / WEIGHTS["controlnet"], spoil)
    with pytest.raises(WeightsError) as error:
        load_network(CONTROLNET, folder / "controlnet")
    assert len(error.value.problems) == 2 and "mid_block.resnets.0.norm1.bias" in str(error.value)


def test_stable_diffusion_s_own_unet_is_recognised(folder):
    def strip(tensors):
        for key in [key for key in tensors if ".pixel_attentions." in key]:
            del tensors[key]

    edit(folder / WEIGHTS["unet"], strip)
    with pytest.raises(WeightsError, match="this UNet is not XPSR's, it has no Conditional Attention"):
        load(folder)


def test_wrong_folders_are_refused(folder, released, tmp_path):
    with pytest.raises(
        UserError, match=r"nowhere does not exist; expected a model folder with the subfolders unet/, c"
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is a file; expected"):
        load(folder / "unet" / "config.json")
    with pytest.raises(UserError, match=r"no vae/, text_encoder/, tokenizer/, scheduler/; .*found controlnet/, unet/$"):
        load(released)
    with pytest.raises(UserError, match=r"no controlnet/; .*found no subfolders$"):
        load_networks(released / "unet")
    # A model's own subfolder in another one's place.
    shutil.rmtree(folder / "unet")
    shutil.copytree(folder / "vae", folder / "unet")
    with pytest.raises(UserError, match=r"unet: UNetConfig cannot be made from this config\.json.*latent_channels=4"):
        load(folder)


def test_broken_small_files_are_refused(folder, tmp_path):
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer: expected vocab\.json and merges\.txt"):
        load(folder)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        load_tokenizer(tmp_path / "tokenizer")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UserError, match=r"scheduler_config\.json cannot be read: No such file"):
        load(folder)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"stepz": 3}, r"model_index\.json: xpsr_jax: sampling\.stepz=3 is an unknown field"),
        (
            {"steps": "many", "start": "here", "upscale": 4},
            r'sampling\.steps must be a whole number, not "many"; sampling\.start must be one of "lr"',
        ),
        ({"steps": -1}, "steps must be at least 0"),
        (
            {"guidance_interval": [0.5], "karras": 1},
            r"guidance_interval must be a list of 2 values, not \[0.5\]; sampling\.karras must be true or false",
        ),
        ({"strength": 2}, "strength must be above 0 and at most 1"),
    ],
)
def test_wrong_sampling_settings_are_refused(sampling, message, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"xpsr_jax": {"sampling": sampling}}))
    with pytest.raises(UserError, match=message):
        load_defaults([tmp_path])


def test_sampling_settings_round_trip(tmp_path):
    sampling = Sampling(sampler="unipc", karras=True, guidance_interval=(0.25, 1.0), spacing="trailing", strength=0.5)
    write_index(tmp_path, sampling, "")
    assert load_defaults([tmp_path]) == (sampling, "")


def test_the_last_folder_with_sampling_settings_is_used(tmp_path):
    for name, block in {"a": {"sampling": {"steps": 3}}, "b": {"sampling": {"guidance_scale": 4}}, "c": None}.items():
        (tmp_path / name).mkdir()
        index = {"_class_name": "X"} if block is None else {"xpsr_jax": block}
        (tmp_path / name / "model_index.json").write_text(json.dumps(index))
    folders = [tmp_path / name for name in "abc"]
    assert load_defaults(folders) == (dataclasses.replace(PAPER, guidance_scale=4), "")
    assert load_defaults([]) == (PAPER, "")


def test_a_failed_save_leaves_nothing(networks, released, tmp_path):
    unet, controlnet = networks[0], load_network(CONTROLNET, released / "controlnet")
    bias = controlnet.conv_in.bias
    bias[...] = bias[...].at[0].set(jnp.nan)
    with pytest.raises(WeightsError, match=r"NaN or infinity: in conv_in\.bias"):
        save({"unet": unet, "controlnet": controlnet}, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []
    # And an older model is kept unchanged.
    save({"unet": networks[0], "controlnet": networks[1]}, tmp_path / "deep" / "out")
    before = (tmp_path / "deep" / "out" / WEIGHTS["unet"]).read_bytes()
    with pytest.raises(WeightsError):
        save({"unet": unet, "controlnet": controlnet}, tmp_path / "deep" / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / WEIGHTS["unet"]).read_bytes() == before


def test_existing_files_are_not_overwritten_by_accident(networks, tmp_path):
    parts = {"unet": networks[0]}
    save(parts, tmp_path / "out")
    with pytest.raises(UserError, match="out already exists"):
        save(parts, tmp_path / "out")
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not replaced, because it also holds thesis\.tex"):
        save(parts, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "thesis.tex").unlink()
    save({"unet": networks[0], "controlnet": networks[1]}, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "controlnet").is_dir()
    with pytest.raises(UserError, match="cannot be created"):
        save(parts, tmp_path / "out" / "model_index.json" / "below")
