"""Preflight compiles the same programs that training and sampling run."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from tests.training import tiny
from xpsr_jax import sharding
from xpsr_jax.config import Mesh
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.inference import first_stage, restore
from xpsr_jax.inference.on_devices import OnDevices
from xpsr_jax.models.first_stage_config import RRDBNetConfig
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.pods import programs
from xpsr_jax.training.export import tokenizer_of
from xpsr_jax.weights.model_folder import Model, save
from xpsr_jax.weights.networks import NETWORKS, Keys, abstract

CONFIG = dataclasses.replace(tiny.config(), batch_size=16, accumulation=2, mesh=Mesh(data=2, fsdp=4))
GPUS = AbstractMesh((1, 8), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def test_the_sampling_step_has_the_inputs_of_real_sampling(monkeypatch):
    config = dataclasses.replace(tiny.config(), batch_size=8)
    mesh = sharding.make_mesh(config.mesh)
    program = programs.sampling_step(config, mesh)
    calls = []

    def keep(*arguments, **options):
        calls.append((arguments, options))
        return arguments[3]  # the state, unchanged

    monkeypatch.setattr(restore, "run_steps", keep)
    monkeypatch.setattr(restore, "finish", lambda graph, color, weights, latents, pixels: (pixels, np.ones(8, bool)))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    restorer = restore.Restorer(model(config), config.sampling, mesh=mesh)
    restorer([image] * 8, [Caption("a", "b")] * 8)
    arguments, options = calls[0]
    assert program.arguments[0].guidance == arguments[0].guidance and program.arguments[1] == arguments[1]
    for planned, real in ((program.arguments[2:], arguments[2:]), (program.options, options)):
        assert jax.tree.map(of, planned) == jax.tree.map(of, real)


def of(leaf):
    """The shape and type that jit sees."""
    leaf = jax.typeof(leaf) if not isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    return leaf.shape, leaf.dtype


def model(config):
    """Random networks of the config."""
    names, rng = ("unet", "controlnet", "autoencoder", "text_encoder"), np.random.default_rng(0)
    networks = {name: abstract(NETWORKS[name], getattr(config.networks, name), compute=Compute()) for name in names}
    filled = {
        name: jax.tree.map(lambda leaf: jax.numpy.asarray(rng.standard_normal(leaf.shape), leaf.dtype), network)
        for name, network in networks.items()
    }
    tokenizer = tokenizer_of(config.networks)
    return Model(**filled, tokenizer=tokenizer, schedule=config.networks.schedule, defaults=config.sampling, note="")


@pytest.mark.parametrize("make", [programs.train_step, programs.sampling_step])
def test_both_lower_for_cuda(make):
    """With plain attention, on a machine without a GPU. cuDNN's kernel cannot be tested here."""
    config = programs.without_files(dataclasses.replace(CONFIG, mesh=Mesh()), attention="plain")
    exported = make(config, GPUS).export("cuda")
    assert exported.platforms == ("cuda",) and exported.nr_devices == 8


@pytest.mark.soak
def test_the_turns_of_few_step_training_are_the_two_branches_of_its_step():
    config = programs.without_files(
        dataclasses.replace(tiny.config("few_step"), batch_size=8, mesh=Mesh(1, -1)), attention="plain"
    )
    mesh = sharding.make_mesh(config.mesh)
    step, turns = programs.train_step(config, mesh), programs.turns(config, mesh)
    assert list(turns) == ["student", "critic"]
    whole = step.lower().as_text()
    texts = {role: turn.lower().as_text() for role, turn in turns.items()}
    assert whole.count("stablehlo.case") == 1
    for role, text in texts.items():
        assert "stablehlo.case" not in text
        assert jax.tree.map(of, turns[role].arguments) == jax.tree.map(of, step.arguments)

    def products(text):
        return text.count("stablehlo.convolution") + text.count("stablehlo.dot_general")

    assert products(whole) == products(texts["student"]) + products(texts["critic"])


def test_the_first_stage_has_the_inputs_of_real_sampling(monkeypatch, tmp_path):
    """The program gets LR images with the size of the sampling step's crops, as in sampling."""
    assert programs.first_stage(CONFIG, GPUS) is None
    network = RRDBNet(RRDBNetConfig(features=2, blocks=1, growth=2), rngs=Keys(jax.random.key(0)))
    save({"first_stage": network}, tmp_path / "model")
    networks = dataclasses.replace(CONFIG.networks, first_stage=str(tmp_path / "model"))
    config = dataclasses.replace(CONFIG, batch_size=8, mesh=Mesh(data=8, fsdp=1), networks=networks)
    mesh = sharding.make_mesh(config.mesh)
    program = programs.first_stage(config, mesh)
    calls = []

    def keep(*arguments):
        calls.append(arguments)
        return np.zeros((8, tiny.SIZE, tiny.SIZE, 3), np.uint8), np.ones(8, bool)

    monkeypatch.setattr(first_stage, "run_first_stage", keep)
    image = np.zeros((tiny.SIZE // 4, tiny.SIZE // 4, 3), np.uint8)
    run = first_stage.FirstStage(
        OnDevices(dataclasses.replace(model(config), first_stage=network), batch_size=1, mesh=mesh), tile=0
    )
    run([image] * 8)
    (real,) = calls
    assert program.arguments[0] == real[0] and jax.tree.map(of, program.arguments[1:]) == jax.tree.map(of, real[1:])
    assert "tensor<8x16x16x3xui8>" in program.lower().as_text()


def test_full_size_needs_no_files():
    config = programs.without_files(CONFIG, attention="two_pass")
    assert config.networks.base == () and set(config.networks.from_scratch) == set(NETWORKS)
    assert config.precision.attention == "two_pass"


@pytest.mark.parametrize("make", [programs.train_step, programs.sampling_step])
def test_a_batch_that_the_devices_cannot_divide(make):
    with pytest.raises(UserError, match=r"batch_size=12 must be a multiple of"):
        make(dataclasses.replace(CONFIG, batch_size=12), GPUS)
