"""One training step of the released code on one batch, against ours (tests/vectors/xpsr/train.*; method §6, §13).

It uses the code and the settings of real training: configs/xpsr_released.py with its trained parameters, the loss, its
gradients, the optimizer.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from tests.models.golden import error, read, under
from xpsr_jax import sharding
from xpsr_jax.config import Mesh, Networks, Precision, load_config
from xpsr_jax.models.configs import AutoencoderConfig, TextEncoderConfig
from xpsr_jax.training.losses import diffusion_loss
from xpsr_jax.training.parameters import initial_parameters
from xpsr_jax.training.state import abstract_state, initial_state, make_optimizer
from xpsr_jax.training.step import apply_gradients
from xpsr_jax.training.structure import make_structure
from xpsr_jax.weights.networks import NETWORKS
from xpsr_jax.weights.rules import to_torch


@pytest.fixture(scope="module")
def theirs(vectors):
    """The released run: tensors by name (images with channels last), and numbers."""
    return read(vectors / "xpsr" / "train.safetensors"), json.loads((vectors / "xpsr" / "train.json").read_text())


@pytest.fixture(scope="module")
def ours(vectors, theirs, tmp_path_factory):
    """(loss, terms, gradients) of two steps on the batch, and the parameters after the first one."""
    base = tmp_path_factory.mktemp("xpsr")
    for name in ("unet", "controlnet"):
        (base / name).mkdir()
        shutil.copy(vectors / "xpsr" / f"{name}_config.json", base / name / "config.json")
        shutil.copy(vectors / "xpsr" / f"{name}.safetensors", base / name / "diffusion_pytorch_model.safetensors")
    config = dataclasses.replace(
        load_config("configs/xpsr_released.py"),
        networks=Networks(
            base=(base,),
            from_scratch=("autoencoder", "text_encoder"),
            autoencoder=AutoencoderConfig(block_out_channels=(32, 32, 32, 32)),
            text_encoder=TextEncoderConfig(
                hidden_size=24, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
            ),
        ),
        precision=Precision(dtype="float32", frozen_dtype="float32", remat=False),
        mesh=Mesh(data=1, fsdp=1),
    )
    structure = make_structure(config)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    shardings = sharding.parameter_shardings(structure.shapes(), mesh)
    optimizer = make_optimizer(config, structure.trained)
    frozen = initial_parameters(structure, [p for p in structure.frozen if p.startswith("unet.")], shardings, seed=0)
    trained = initial_parameters(structure, structure.trained, shardings, seed=0)
    state = initial_state(config, optimizer, trained, abstract_state(config, structure, optimizer, shardings))
    # Latents and embeddings are given, so the other two networks are not used.
    unused = {path: np.zeros(shape.shape, np.float32) for path, shape in structure.shapes().items()}
    tensors, _ = theirs
    batch = {
        "latents": tensors["in.latents"],
        "noise": tensors["in.noise"],
        "timesteps": tensors["in.timesteps"].astype(np.int32),
        "high": tensors["in.high"],
        "low": tensors["in.low"],
        "lr": tensors["in.cond"],
        "hr": tensors["in.pixel_values"],
    }

    @jax.jit
    def step(state, frozen, batch):
        def loss(trained):
            networks = structure.merge(unused, frozen, trained)
            return diffusion_loss(networks, **batch, schedule=structure.networks.schedule, loss=config.loss)

        (value, terms), gradients = jax.value_and_grad(loss, has_aux=True)(state.trained)
        return (value, terms, gradients), apply_gradients(state, gradients, optimizer, ema=None)

    first, state = step(state, frozen, batch)
    second, _ = step(state, frozen, batch)
    return first, second, state.trained


def named_by_them(arrays):
    """Our arrays under their keys, "network.key". The layout is PyTorch's, but with channels last, as from `read`."""
    result = {}
    for path, array in arrays.items():
        network, _, rest = path.partition(".")
        key, array = to_torch(rest, np.asarray(array), NETWORKS[network].names)
        result[f"{network}.{key}"] = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
    return result


def relative(value, expected):
    return abs(float(value) - expected) / abs(expected)


def too_large(errors, tolerance):
    return {name: value for name, value in errors.items() if not value < tolerance}


def test_loss_and_every_term(ours, theirs):
    (value, terms, _), _, _ = ours
    _, numbers = theirs
    assert relative(value, numbers["loss"]) < 1e-6  # measured 2.7e-7
    assert relative(terms["mse"], numbers["mse_loss"]) < 1e-6  # 3.1e-7
    assert relative(0.05 * terms["constraint"], numbers["degradation_loss"]) < 1e-6  # 9.5e-8
    heads = {
        name.replace("rgb.", "rgb_").replace("latent_pred.", "latent_").replace("latent_pred_mid", "latent_mid"): value
        for name, value in numbers["l1_terms_unweighted"].items()
    }
    assert terms.keys() == {"mse", "constraint", *heads}
    assert too_large({name: relative(terms[name], value) for name, value in heads.items()}, 3e-6) == {}  # 1.0e-6


def test_trained_parameters_and_their_gradients(ours, theirs):
    (_, _, gradients), _, _ = ours
    tensors, numbers = theirs
    gradients = named_by_them(gradients)
    assert gradients.keys() == numbers["grad_norms"].keys()
    assert sum(array.size for array in gradients.values()) == numbers["n_trainable_params"]
    norms = {name: np.linalg.norm(array.astype(np.float64)) for name, array in gradients.items()}
    total = np.sqrt(sum(norm**2 for norm in norms.values()))
    assert relative(total, numbers["total_grad_norm_before_clip"]) < 2e-6  # measured 2.0e-7
    errors = {name: relative(norms[name], norm) for name, norm in numbers["grad_norms"].items()}
    assert too_large(errors, 2e-5) == {}  # 4.1e-6
    errors = {name: error(gradients[name], gradient) for name, gradient in under("grad.", tensors).items()}
    assert len(errors) == 10
    assert too_large(errors, 1e-4) == {}  # 2.2e-5 of the root mean square


def test_parameters_after_a_clipped_step(ours, theirs):
    _, second, after = ours
    tensors, numbers = theirs
    assert numbers["total_grad_norm_before_clip"] > 2 * numbers["max_grad_norm"]
    after = named_by_them(after)
    expected = under("param_after_step.", tensors)
    errors = {name: np.abs(after[name] - array).max() for name, array in expected.items()}
    assert len(errors) == 10
    # Measured 7.1e-8, a rounding of parameters between 0.5 and 1; the step itself is 5e-5.
    assert too_large(errors, 1.5e-7) == {}
    assert relative(second[0], numbers["loss_after_one_step"]) < 1e-6  # 2.0e-7
