"""PyTorch's file formats, written by PyTorch, diffusers and transformers; and pickles that would run code."""

import json
import pickle

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.numpy import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from tests.weights.test_single_file import CONFIGS, make
from xpsr_jax.errors import UserError
from xpsr_jax.weights.convert import convert
from xpsr_jax.weights.folders import read_folder
from xpsr_jax.weights.single_file import read_single_file, read_tensors
from xpsr_jax.weights.sources import open_source


class Malicious:
    """If it is unpickled, it makes a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


class Callback:
    """An object that is not a tensor, as in Lightning's checkpoints."""


def states():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(4, 3, generator=generator),
        "a.bias": torch.randn(4, generator=generator).half(),
        "b.weight": torch.randn(2, 4, generator=generator).bfloat16(),
        "b.transposed": torch.randn(2, 4, generator=generator).T,
        "c.ids": torch.arange(3),
    }


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        array = tensors[key].read()
        assert array.dtype.name == str(value.dtype).removeprefix("torch.") and array.shape == tuple(value.shape)
        assert np.array_equal(array.astype(np.float64), value.double().numpy())


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_tensors(zipped, tmp_path):
    torch.save(states(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_same(read_folder(tmp_path), states())


def test_pickled_shards_and_variants(tmp_path):
    parts = [dict(list(states().items())[:2]), dict(list(states().items())[2:])]
    weight_map = {}
    for i, part in enumerate(parts):
        torch.save(part, tmp_path / f"part-{i}.bin")
        weight_map |= dict.fromkeys(part, f"part-{i}.bin")
    (tmp_path / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    torch.save({"h": torch.ones(2).half()}, tmp_path / "diffusion_pytorch_model.fp16.bin")
    assert_same(read_folder(tmp_path), states())
    assert_same(read_folder(tmp_path, variant="fp16"), {"h": torch.ones(2).half()})


@pytest.mark.parametrize("how", ["torch", "zipped", "plain"])
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt"])
def test_pickles_are_never_executed(how, name, tmp_path):
    file, made = tmp_path / name, tmp_path / "executed"
    content = {"state_dict": {"w": torch.ones(2), "x": Malicious(made)}} if how != "plain" else Malicious(made)
    if how == "plain":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "zipped")
    with pytest.raises(UserError, match=rf"{name}.*(can run any code|truncated, corrupt)"):
        read_folder(tmp_path) if name.endswith(".bin") else open_source(file)
    assert not made.exists()


def test_files_with_other_objects_and_broken_files(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"state_dict": states(), "epoch": 3, "optimizer_states": [{"lr": 0.1}]}, file)
    assert_same(read_folder(tmp_path), states())
    torch.save({"state_dict": states(), "callbacks": Callback()}, file)
    with pytest.raises(UserError, match=r"is refused: .*Callback, and .*If you trust its source"):
        read_folder(tmp_path)
    torch.save({"w": torch.ones(2), "n": 3}, file)
    with pytest.raises(UserError, match=r"holds values that are not tensors: n \(int\)"):
        read_folder(tmp_path)
    torch.save(states(), file)
    for keep in (0, 100, file.stat().st_size - 50):
        content = file.read_bytes()
        file.write_bytes(content[:keep])
        with pytest.raises(UserError, match=r"is truncated, corrupt or not a \.bin file"):
            read_folder(tmp_path)
        file.write_bytes(content)


@pytest.mark.parametrize("version", [1, 2])
def test_a_single_file_is_read_like_by_diffusers(version, tmp_path):
    """The LDM names in our tests are right: diffusers' reader finds the same tensors as our reader."""
    today, file = make(version)
    path = tmp_path / "model.safetensors"
    save_file({key: np.ascontiguousarray(array) for key, array in file.items()}, path)
    content = read_single_file(path, read_tensors(path))
    for name, library in (("unet", UNet2DConditionModel), ("autoencoder", AutoencoderKL)):
        folder = tmp_path / name
        library.from_config(CONFIGS[version][name].to_json()).save_config(folder)
        model = library.from_single_file(str(path), config=str(folder), local_files_only=True)
        theirs = {key: value.numpy() for key, value in model.state_dict().items()}
        ours = content.networks[name][1]
        assert theirs.keys() == ours.keys()
        assert all(np.array_equal(theirs[key], ours[key].read().reshape(theirs[key].shape)) for key in theirs)
        assert all(np.array_equal(theirs[key], today[name][key]) for key in theirs)


def test_ckpt(tmp_path):
    """A training checkpoint like Lightning's, without its unsafe objects, is a complete model without ControlNet."""
    today, file = make(1)
    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in file.items()}
    torch.save({"state_dict": tensors, "global_step": 470000, "epoch": 8}, tmp_path / "sd.ckpt")
    done = convert([open_source(tmp_path / "sd.ckpt")], tmp_path / "out", verify=True)
    assert done.missing == ("controlnet",)
    # diffusers and transformers can read the folder.
    unet, report = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(np.array_equal(value.numpy(), today["unet"][key]) for key, value in unet.state_dict().items())
    vae, report = AutoencoderKL.from_pretrained(tmp_path / "out" / "vae", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    text, report = CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(text.config, CLIPTextConfig) and vae.config.scaling_factor == 0.18215
