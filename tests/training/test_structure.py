"""The networks of a config, the trained parameters, and the origin of each initial parameter (method §5)."""

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import tiny
from xpsr_jax import sharding
from xpsr_jax.config import Mesh
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.errors import UserError
from xpsr_jax.json_files import write_json
from xpsr_jax.models.controlnet import unet_twin
from xpsr_jax.training.fingerprints import fingerprints
from xpsr_jax.training.parameters import initial_parameters
from xpsr_jax.training.structure import make_structure
from xpsr_jax.weights.networks import ALL_NETWORKS, NETWORKS
from xpsr_jax.weights.rules import to_torch
from xpsr_jax.weights.tensors import Tensor, WeightsError
from xpsr_jax.weights.torch_files import write_file

FILE = "diffusion_pytorch_model.safetensors"


# What the released code trains.
CONFIG = dataclasses.replace(
    tiny.config(), trained=((r"controlnet\..*", True), (r"unet\..*\.pixel_attentions\..*", True))
)


def replaced(**fields):
    """CONFIG with other fields of its networks."""
    return dataclasses.replace(CONFIG, networks=dataclasses.replace(tiny.NETWORKS, **fields))


def write_network(structure, name, config, base, *, without):
    """Writes a PyTorch folder of a network with random parameters, without those that match; returns the parameters."""
    shapes = {path: x.shape for path, x in structure.shapes().items() if path.startswith(f"{name}.")}
    arrays = {path: tiny.random_parameter(path, shape) for path, shape in shapes.items() if not without.match(path)}
    named = (to_torch(path.removeprefix(f"{name}."), array, NETWORKS[name].names) for path, array in arrays.items())
    folder = base / NETWORKS[name].subfolder
    folder.mkdir()
    write_json(config.to_json(), folder / "config.json")
    write_file({key: Tensor.of(key, array) for key, array in named}, folder / FILE, where=folder)
    return arrays


@pytest.fixture(scope="module")
def structure():
    return make_structure(CONFIG)


@pytest.fixture(scope="module")
def stock(structure, tmp_path_factory):
    """A folder like Stable Diffusion's, whose UNet has no Conditional Attention, and its arrays."""
    base = tmp_path_factory.mktemp("stock")
    configs = {
        "unet": dataclasses.replace(tiny.UNET, conditional_attention=False),
        "autoencoder": tiny.NETWORKS.autoencoder,
    }
    arrays = {}
    for name, config in configs.items():
        arrays |= write_network(structure, name, config, base, without=re.compile(r".*\.pixel_attentions\."))
    (base / "scheduler").mkdir()
    write_json(Schedule(prediction_type="v_prediction").to_json(), base / "scheduler" / "scheduler_config.json")
    return base, arrays


def test_patterns_choose_the_trained_parameters(structure):
    assert structure.trained | structure.frozen == structure.shapes().keys()
    for path in structure.shapes():
        chosen = path.startswith("controlnet.") or ".pixel_attentions." in path
        assert (path in structure.trained) == chosen
    first = dataclasses.replace(CONFIG, trained=((r"unet\.mid_block\..*", False), (r"unet\..*", True)))
    trained = make_structure(first).trained
    assert "unet.conv_in.kernel" in trained and not any("mid_block" in path for path in trained)


@pytest.mark.soak
def test_from_stable_diffusion(stock):
    """The base is loaded. The ControlNet is an exact copy of the UNet, although the frozen UNet is bfloat16."""
    base, arrays = stock
    config = replaced(base=(base,), from_scratch=("controlnet", "text_encoder"))
    structure = make_structure(config)
    assert structure.networks.unet.conditional_attention
    assert structure.networks.schedule == Schedule(prediction_type="v_prediction")
    assert structure.sources.keys() == {"unet", "autoencoder"}
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=4))
    shapes = structure.shapes()
    shardings = sharding.parameter_shardings(shapes, mesh, replicated_bytes=0)
    found: dict[str, str] = {}
    frozen = initial_parameters(
        structure, structure.frozen, shardings, seed=0, frozen_dtype="bfloat16", fingerprints=found
    )
    trained = initial_parameters(structure, structure.trained, shardings, seed=0, frozen_dtype="bfloat16")
    assert found.keys() == {"unet", "autoencoder"}
    assert dict.fromkeys(ALL_NETWORKS, "") | found == fingerprints(structure)
    assert trained.keys() == structure.trained and frozen.keys() == structure.frozen
    for path, array in (trained | frozen).items():
        assert array.shape == shapes[path].shape and array.sharding == shardings[path]
        assert array.dtype == (jnp.float32 if path in trained else jnp.bfloat16)
        assert jnp.isfinite(array).all()
    for path, array in frozen.items():
        if path in arrays:
            np.testing.assert_array_equal(array, arrays[path].astype(jnp.bfloat16))

    copied = new = 0
    for path, array in trained.items():
        network, _, rest = path.partition(".")
        twin = arrays.get(f"unet.{unet_twin(rest)}") if network == "controlnet" else None
        if twin is not None and twin.shape == array.shape:
            np.testing.assert_array_equal(array, twin)
            copied += 1
        elif "controlnet_down_blocks" in rest or "controlnet_mid_block" in rest or ".conv_out." in path:
            assert not array.any()
        elif rest.endswith(".kernel"):
            bound = 1 / np.sqrt(np.prod(array.shape[:-1]))
            assert 0.5 * bound < jnp.abs(array).max() <= bound
            new += 1
    assert copied > 50 and new > 20  # copied: SFA's branches and more; new: Conditional Attention and more


def test_constraint_heads_are_initialised_if_the_base_has_none(structure, tmp_path):
    published = dataclasses.replace(tiny.NETWORKS.controlnet, return_rgbs=False, use_latent_pred=False)
    heads = re.compile(r"controlnet\.(controlnet_cond_embedding\.to_rgbs|conv_degradation)")

    def start(name, without):
        (tmp_path / name).mkdir()
        arrays = write_network(structure, "controlnet", published, tmp_path / name, without=without)
        made = make_structure(replaced(base=(tmp_path / name,), from_scratch=tiny.NETWORKS.from_scratch))
        paths = [path for path in made.shapes() if path.startswith("controlnet.")]
        shardings = sharding.parameter_shardings(made.shapes(), sharding.make_mesh(Mesh(data=8, fsdp=1)))
        return arrays, initial_parameters(made, paths, shardings, seed=0)

    arrays, parameters = start("without", heads)
    new = {path for path in parameters if path not in arrays}
    assert new == {path for path in structure.shapes() if heads.match(path)} and len(new) == 10
    for path, array in arrays.items():
        np.testing.assert_array_equal(parameters[path], array)
    with pytest.raises(WeightsError, match=r"missing: conv_degradation_mid\.0\.bias"):
        start("some", re.compile(r".*conv_degradation_mid"))


def test_random_parameters_depend_only_on_the_seed(stock, structure):
    paths = [path for path in structure.trained if ".pixel_attentions.0.proj_in." in path]

    def values(config, mesh, seed):
        made = make_structure(config)
        shardings = sharding.parameter_shardings(made.shapes(), sharding.make_mesh(mesh), replicated_bytes=0)
        return np.concatenate([np.ravel(x) for x in initial_parameters(made, paths, shardings, seed=seed).values()])

    expected = values(CONFIG, Mesh(data=8, fsdp=1), 0)
    based = replaced(base=(stock[0],))
    np.testing.assert_array_equal(values(based, Mesh(data=1, fsdp=8), 0), expected)
    assert (values(CONFIG, Mesh(data=8, fsdp=1), 1) != expected).all()


def test_a_base_with_other_tensors_is_refused(stock, tmp_path):
    base = tmp_path / "base"
    (base / "unet").mkdir(parents=True)
    for name in ("config.json", FILE):
        (base / "unet" / name).write_bytes((stock[0] / "unet" / name).read_bytes())
    file = base / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"layers_per_block": 2}))
    networks = dataclasses.replace(tiny.NETWORKS, base=(base,))
    networks = dataclasses.replace(networks, controlnet=dataclasses.replace(networks.controlnet, layers_per_block=2))
    structure = make_structure(dataclasses.replace(CONFIG, networks=networks))
    shardings = sharding.parameter_shardings(structure.shapes(), sharding.make_mesh(Mesh(data=8, fsdp=1)))
    with pytest.raises(WeightsError, match=r"missing: down_blocks\.0\.resnets\.1\.conv1\.weight"):
        initial_parameters(structure, structure.frozen, shardings, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"from_scratch": ("controlnet",)},
            r"no unet/, vae/, text_encoder/ \(networks.base: none was given\).*--networks.base",
        ),
        (
            {"from_scratch": ("controlnet", "clip")},
            "there is no network clip; use some of unet, controlnet, autoencoder, text_encoder",
        ),
        (
            {"text_encoder": dataclasses.replace(tiny.NETWORKS.text_encoder, hidden_size=16)},
            "cross_attention_dim is 8, but text_encoder.hidden_size is 16",
        ),
        (
            {"autoencoder": dataclasses.replace(tiny.NETWORKS.autoencoder, latent_channels=5)},
            "unet.in_channels is 4, but autoencoder.latent_channels is 5",
        ),
        (
            {"controlnet": dataclasses.replace(tiny.NETWORKS.controlnet, conditioning_embedding_out_channels=(4, 8))},
            "the ControlNet's is 2, .*latents is 4",
        ),
        (
            {"controlnet": dataclasses.replace(tiny.NETWORKS.controlnet, block_out_channels=(16,))},
            r"controlnet features is \[16, 16\], but unet features is \[8, 8\]",
        ),
    ],
)
def test_impossible_networks_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make_structure(replaced(**fields))


def test_the_error_for_an_incomplete_base_names_the_folder_and_the_flag(stock, tmp_path):
    base = stock[0]
    with pytest.raises(
        UserError,
        match=rf"no text_encoder/ \(networks.base: {base}\).*--networks.base.*--networks.from-scratch text_encoder",
    ):
        make_structure(replaced(base=(base,), from_scratch=("controlnet",)))
    with pytest.raises(UserError, match=f"{tmp_path}/nothing does not exist; name its folder with --networks.base"):
        make_structure(replaced(base=(tmp_path / "nothing",)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"trained": ((r"unet\.konv_in\..*", True),)},
            r"konv_in.*' matches no parameter; parameters have names like 'autoencoder\.decoder",
        ),
        ({"trained": ((".*", False),)}, "nothing would be trained"),
        ({"data": dataclasses.replace(tiny.config().data, crop_size=66)}, "data.crop_size=66 must be a multiple of 4"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make_structure(dataclasses.replace(CONFIG, **fields))


def test_an_unused_base_is_an_error(stock):
    base, _ = stock
    with pytest.raises(UserError, match="is not used: later ones also have unet/"):
        make_structure(replaced(base=(base, base)))
