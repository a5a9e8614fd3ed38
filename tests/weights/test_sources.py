"""Finding a model's components: in a model folder, a component's folder, or a component's file; errors for the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.weights.conftest import random_tensors, write_network
from tests.weights.ldm import single_file
from tests.weights.test_single_file import AUTOENCODER_CONFIG, TEXT_1, UNET_1
from xpsr_jax.errors import UserError
from xpsr_jax.weights.convert import convert
from xpsr_jax.weights.networks import AUTOENCODER, TEXT_ENCODER, UNET, load_network
from xpsr_jax.weights.sources import check_each_is_used, find_components, open_source


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(AUTOENCODER, AUTOENCODER_CONFIG)


@pytest.mark.parametrize("flax", ["", "Flax"])
def test_a_single_component_is_recognised(tensors, flax, tmp_path):
    """A folder like sd-vae-ft-mse: config.json and weights at the top."""
    folder = tmp_path / "sd-vae-ft-mse"
    write_network(AUTOENCODER, AUTOENCODER_CONFIG, tensors, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": f"{flax}AutoencoderKL"}))
    assert find_components(folder) == {"autoencoder": folder}
    done = convert([open_source(folder)], tmp_path / "out")
    assert done.sources == {"vae": folder}
    written = load_file(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[key], tensors[key]) for key in tensors)


def test_other_single_components(tmp_path):
    write_network(TEXT_ENCODER, TEXT_1, random_tensors(TEXT_ENCODER, TEXT_1), tmp_path / "text")
    assert find_components(tmp_path / "text") == {"text_encoder": tmp_path / "text"}
    for file, name in (("scheduler_config.json", "schedule"), ("tokenizer.json", "tokenizer")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / file).write_text("{}")
        assert find_components(folder) == {name: folder}


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "holds no part of a model: expected some of the subfolders unet/, .* found nothing"),
        ({"notes.txt": ""}, r"holds no part of a model: .* found notes\.txt"),
        ({"config.json": '{"_class_name": "T2IAdapter"}'}, r"config\.json is for T2IAdapter; known are UNet2DCond"),
        ({"config.json": '{"_class_name": 3, "architectures": [4]}'}, r"config\.json is for no class"),
        ({"config.json": "["}, r"config\.json is not valid JSON"),
    ],
)
def test_a_folder_without_components_is_an_error(files, problem, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=problem):
        open_source(tmp_path)


def test_every_source_must_be_used():
    a, b = Path("a"), Path("b")
    check_each_is_used([a, b], [{"unet", "schedule"}, {"unet"}])
    check_each_is_used([b], [{"unet"}])
    with pytest.raises(UserError, match=r"^a is not used: later ones also have unet/ \(b\)"):
        check_each_is_used([a, b], [["unet"], ["unet", "schedule"]])
    with pytest.raises(UserError, match=r"^a is not used: it has no usable component"):
        check_each_is_used([a], [[]])


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "module.", "_orig_mod.module.", "model."])
def test_an_autoencoder_file_with_its_original_names(tensors, prefix, tmp_path, capsys):
    both = single_file(
        random_tensors(UNET, UNET_1),
        tensors,
        random_tensors(TEXT_ENCODER, TEXT_1),
        version=1,
        layers=2,
        attended_up={1},
        levels=2,
    )
    vae = {key.removeprefix("first_stage_model."): array for key, array in both.items() if key.startswith("first_")}
    file = tmp_path / "vae.safetensors"
    save_file({f"{prefix}{key}": np.ascontiguousarray(array) for key, array in vae.items()}, file)
    done = convert([open_source(file)], tmp_path / "out")
    assert done.sources == {"vae": file}
    written = load_file(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(np.array_equal(written[key], tensors[key]) for key in tensors)
    said = capsys.readouterr().err
    assert said == (
        ""
        if prefix in ("", "first_stage_model.")
        else f"{file}: the prefix {prefix} is removed from the names of all tensors\n"
    )


def test_a_prefix_that_all_names_share_is_removed(tensors, tmp_path, capsys):
    folder = tmp_path / "vae"
    write_network(AUTOENCODER, AUTOENCODER_CONFIG, {f"module.{key}": array for key, array in tensors.items()}, folder)
    for _ in range(2):
        load_network(AUTOENCODER, folder)
    assert capsys.readouterr().err == f"{folder}: the prefix module. is removed from the names of all tensors\n"
