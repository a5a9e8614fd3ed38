"""A run's checkpoint converts to the same model that the run exports, and only with the run's own base."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.training import tiny
from xpsr_jax import sharding
from xpsr_jax.config import Mesh
from xpsr_jax.errors import UserError
from xpsr_jax.training import resume
from xpsr_jax.training.checkpoint_source import open_checkpoint
from xpsr_jax.training.checkpoints import Checkpoints, Damaged
from xpsr_jax.training.export import as_model, assemble, tokenizer_of
from xpsr_jax.training.fingerprints import fingerprints
from xpsr_jax.training.parameters import initial_parameters
from xpsr_jax.training.state import abstract_state, initial_state, make_optimizer
from xpsr_jax.training.structure import make_structure
from xpsr_jax.weights import model_folder
from xpsr_jax.weights.convert import convert
from xpsr_jax.weights.networks import NETWORKS
from xpsr_jax.weights.sources import is_training_checkpoint, open_source


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run without steps on a base with a text encoder, with its checkpoints and its exported model."""
    folder = tmp_path_factory.mktemp("run")
    small = dataclasses.replace(tiny.config(), mesh=Mesh(data=1, fsdp=1))
    base = folder / "base"
    structure = make_structure(small)
    bundle = structure.make(("text_encoder",), jax.random.key(5))
    model_folder.save({"text_encoder": bundle.text_encoder}, base)

    config = dataclasses.replace(small, networks=dataclasses.replace(small.networks, base=(base,)))
    config = dataclasses.replace(config, precision=dataclasses.replace(config.precision, frozen_dtype="bfloat16"))
    structure, mesh = make_structure(config), sharding.make_mesh(config.mesh, jax.devices()[:1])
    shardings = sharding.parameter_shardings(structure.shapes(), mesh)
    arguments = dict(shardings=shardings, seed=config.seed, frozen_dtype=config.precision.frozen_dtype)
    frozen = initial_parameters(structure, structure.frozen, **arguments)
    trained = initial_parameters(structure, structure.trained, **arguments)
    optimizer = make_optimizer(config, structure.trained)
    abstract = abstract_state(config, structure, optimizer, shardings)
    state = initial_state(config, optimizer, trained, abstract)
    state = dataclasses.replace(state, average={path: array + 1 for path, array in state.average.items()})
    record = resume.record(config, photographs=5, base=fingerprints(structure))
    with Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        for step in (3, 20):
            checkpoints.save(step, state, iter_of_numbers(), record, {})
    tokenizer = tokenizer_of(config.networks)
    model_folder.save(
        as_model(assemble(structure, state.average, frozen), config, structure, tokenizer), folder / "model"
    )
    return folder, config, abstract


def iter_of_numbers():
    import grain

    return iter(grain.MapDataset.range(10).to_iter_dataset())


def test_a_checkpoint_converts_to_the_exported_model(run, tmp_path):
    folder, config, _ = run
    assert resume.config_of(resume.record(config, photographs=5)) == config
    assert is_training_checkpoint(folder) and not is_training_checkpoint(folder / "model")
    with pytest.raises(UserError, match=r"is a training checkpoint: make a model folder from it"):
        open_source(folder)
    source = open_checkpoint(folder)
    assert source.origins["unet"] == folder / "checkpoints" / "20"
    done = convert([source], tmp_path / "out")
    assert done.missing == ()
    for network in NETWORKS.values():
        name = f"{network.subfolder}/{network.stem}.safetensors"
        ours, theirs = load_file(tmp_path / "out" / name), load_file(folder / "model" / name)
        assert ours.keys() == theirs.keys()
        assert all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs)
    for name in ("model_index.json", "unet/config.json", "controlnet/config.json", "scheduler/scheduler_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((folder / "model" / name).read_text())


def test_the_base_must_be_the_same(run, tmp_path):
    folder, config, _ = run
    (base,) = config.networks.base
    moved = tmp_path / "moved"
    base.rename(moved)
    try:
        with pytest.raises(UserError, match=r"was trained on the base model .*, which does not exist; name the base"):
            open_checkpoint(folder / "checkpoints")
        assert open_checkpoint(folder, bases=[moved]).settings == (config.sampling, config.note)
        file = moved / "text_encoder" / "model.safetensors"
        tensors = load_file(file)
        tensors["text_model.final_layer_norm.bias"][0] += 1
        shutil.copy(file, tmp_path / "kept")
        save_file(tensors, file)
        with pytest.raises(UserError, match=r"trained on another text_encoder than .*SHA-256 \w{12} then, \w{12} now"):
            open_checkpoint(folder, bases=[moved])
        shutil.copy(tmp_path / "kept", file)
    finally:
        moved.rename(base)


def test_the_trained_parameters_instead_of_their_average(run, tmp_path):
    folder, _, _ = run
    convert([open_checkpoint(folder, average=False)], tmp_path / "out")
    name = "controlnet/diffusion_pytorch_model.safetensors"
    ours, average = load_file(tmp_path / "out" / name), load_file(folder / "model" / name)
    different = {key for key in ours if ours[key].tobytes() != average[key].tobytes()}
    assert "conv_degradation_mid.0.weight" in different and "conv_in.weight" not in different
    key = "conv_degradation_mid.0.weight"
    np.testing.assert_allclose(average[key], ours[key] + 1, rtol=1e-6)


# TensorStore reports the errors to an event loop that Orbax has already closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["arrays", "settings", "description"])
def test_a_damaged_newest_checkpoint_is_named_and_never_skipped(damage, run, tmp_path):
    folder, _, abstract = run
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / "20"
    if damage == "arrays":
        for file in (newest / "state").rglob("d/*"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        (newest / {"settings": "config/metadata", "description": "state/_METADATA"}[damage]).write_text("{")
    with (
        Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints,
        pytest.raises(Damaged, match=r"checkpoints/20 cannot be restored; it is damaged or incomplete"),
    ):
        assert checkpoints.latest == 20
        checkpoints.record(20)
        checkpoints.restore(20, abstract, None)
    with pytest.raises(UserError, match=r"20 .*damaged"):
        convert([open_checkpoint(tmp_path / "checkpoints")], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
