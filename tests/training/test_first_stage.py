"""A first stage in training: computed in the step or stored with pairs, its effect on batches, and its export."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.inference.tiny_model import tiny_model
from tests.training import tiny
from tests.weights.esrgan_files import tensors_of, write
from xpsr_jax.cli.convert import main as convert
from xpsr_jax.cli.prepare import main as prepare
from xpsr_jax.config import Images
from xpsr_jax.data.pipeline import make_pipeline
from xpsr_jax.errors import UserError
from xpsr_jax.inference.first_stage import FirstStage
from xpsr_jax.inference.on_devices import OnDevices
from xpsr_jax.training import resume
from xpsr_jax.training.export import export, tokenizer_of
from xpsr_jax.training.fingerprints import fingerprints
from xpsr_jax.training.first_stage import check_stored_pictures, with_first_stage
from xpsr_jax.training.images import open_images
from xpsr_jax.training.plan import example_shapes
from xpsr_jax.training.structure import find_first_stage, make_structure, read_first_stage
from xpsr_jax.weights.networks import FIRST_STAGE, load_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with a first stage of scale 4 and nothing else."""
    place = tmp_path_factory.mktemp("first")
    file = write(tensors_of("x4"), "basicsr", place)
    assert convert([str(file), "--output", str(place / "model")]) == 0
    return place / "model"


@pytest.fixture(scope="module")
def config(folder):
    default = tiny.config()
    data = dataclasses.replace(default.data, clean_input_probability=0.5)
    networks = dataclasses.replace(default.networks, first_stage=str(folder))
    return dataclasses.replace(default, data=data, networks=networks)


@pytest.fixture(scope="module")
def plain():
    """A model without a first stage."""
    return tiny_model()


@pytest.fixture(scope="module")
def batch(config, images):
    data = make_pipeline(
        open_images(images), config.data, tokenizer=tokenizer_of(config.networks), first_stage=True, batch_size=8
    )
    return next(iter(data))


@pytest.mark.more
def test_the_step_computes_the_same_pictures_as_sampling(config, folder, batch, plain):
    structure = make_structure(config)
    assert structure.first_stage == structure.sources["first_stage"] == folder / "first_stage"
    assert not any(path.startswith("first_stage.") for path in structure.trained)
    shapes = example_shapes(config, structure)
    assert {name: (array.shape[1:], array.dtype) for name, array in batch.items() if name != "index"} == {
        name: (each.shape, each.dtype) for name, each in shapes.items()
    }
    network = load_network(FIRST_STAGE, folder / "first_stage")
    model = dataclasses.replace(plain, first_stage=network)
    pixels = np.round(batch["small"] * 255).astype(np.uint8)
    expected = np.stack(FirstStage(OnDevices(model, batch_size=8, mesh=None), tile=0)(list(pixels)))
    bundle = structure.make((), jax.random.key(0))
    bundle.first_stage = network
    given = {name: jnp.asarray(array) for name, array in batch.items() if name != "index"}
    seen = with_first_stage(bundle, given)
    assert seen.keys() == given.keys() - {"small", "clean"} and 0 < batch["clean"].sum() < 8
    for i, clean in enumerate(batch["clean"]):
        # Sixteen LR pixels need no padding, so the programs differ only by rounding.
        wanted = batch["lr"][i] if clean else expected[i] / np.float32(255)
        np.testing.assert_allclose(seen["lr"][i], wanted, atol=0 if clean else 1.01 / 255)
        assert clean or (seen["lr"][i] != batch["lr"][i]).mean() > 0.5
    without = {name: array for name, array in given.items() if name not in ("small", "clean")}
    assert with_first_stage(bundle, without) is without


def test_stored_pictures_replace_the_lr_images(config, folder, images, tmp_path, unchecked):
    """Stored pictures are used as LR images if the pairs were made with the model's first stage."""
    command = ["pairs", str(images.folder), "--rounds", "1", "--crop-size", "80", "--minimum-pixels", "1"]
    assert prepare([*command, "--first-stage", str(folder), "--output", str(tmp_path / "pairs")]) == 0
    pairs = Images(folder=tmp_path / "pairs")
    sample = open_images(pairs)[0]
    assert sample.first_stage.shape == sample.lr.shape == (80, 80, 3) and (sample.first_stage != sample.lr).any()
    data = dataclasses.replace(config.data, first_stage="stored", crop_size=80, clean_input_probability=0.0)
    stored = dataclasses.replace(config, images=pairs, data=data)
    structure = make_structure(stored)
    assert structure.first_stage == folder / "first_stage" and "first_stage" not in structure.sources
    tokenizer = tokenizer_of(config.networks)

    def batch_of(data, images=pairs):
        return next(iter(make_pipeline(open_images(images), data, tokenizer=tokenizer, first_stage=True, batch_size=2)))

    batch = batch_of(data)
    assert "small" not in batch
    found = [any((batch["lr"][i] * 255 == sample.first_stage).all() for sample in open_images(pairs)) for i in (0, 1)]
    flipped = [any((batch["lr"][i] * 255 == s.first_stage[:, ::-1]).all() for s in open_images(pairs)) for i in (0, 1)]
    assert all(a or b for a, b in zip(found, flipped, strict=True))

    known = fingerprints(structure)
    assert json.loads((pairs.folder / "first_stage.json").read_text()) == {"first_stage": known["first_stage"]}
    check_stored_pictures(stored, structure, known)
    with pytest.raises(UserError, match="has no pictures made by the first stage"):
        check_stored_pictures(stored, structure, known | {"first_stage": "another"})
    with pytest.raises(UserError, match="has no stored picture of the first stage"):
        batch_of(data, images)
    with pytest.raises(UserError, match="ready-made pair, for which the first stage's picture"):
        batch_of(dataclasses.replace(data, first_stage="computed"))


def test_it_is_exported_unchanged(config, folder, images, tmp_path):
    structure = make_structure(config)
    parameters = {path: tiny.random_parameter(path, shape.shape) for path, shape in structure.shapes().items()}
    model = export(
        tmp_path / "model",
        config=config,
        structure=structure,
        trained={path: jnp.asarray(parameters[path]) for path in structure.trained},
        frozen={path: jnp.asarray(parameters[path]) for path in structure.frozen},
        source=open_images(images),
        tokenizer=tokenizer_of(config.networks),
    )
    for file in (folder / "first_stage").iterdir():
        assert (model / "first_stage" / file.name).read_bytes() == file.read_bytes()


def test_the_choice_of_the_first_stage(config, folder, tmp_path):
    def first_stage(**networks):
        changed = dataclasses.replace(config.networks, **networks)
        return find_first_stage(dataclasses.replace(config, networks=changed))

    assert first_stage(first_stage="own") is None and first_stage(first_stage="none", base=(folder,)) is None
    assert first_stage(first_stage="own", base=(folder,)) == folder / "first_stage"
    assert first_stage(first_stage=str(folder / "first_stage")) == folder / "first_stage"
    with pytest.raises(UserError, match="is neither the folder of an ESRGAN network"):
        first_stage(first_stage=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="enlarges 4 times, but LR images are made 2 times smaller"):
        read_first_stage(folder / "first_stage", 2)


def test_an_old_run_without_a_first_stage_resumes_without(config):
    """Even if its base has got one since then."""
    record = resume.record(config, photographs=5, base={"unet": "a", "first_stage": "b"})
    old = {**record, "networks": {name: value for name, value in record["networks"].items() if name != "first_stage"}}
    assert resume.config_of(old).networks.first_stage == "none"
    assert resume.config_of(record).networks.first_stage == config.networks.first_stage
    with pytest.raises(UserError, match=r"base\.first_stage: was '', is 'b'"):
        resume.check_base({**old, "base": {"unet": "a"}}, record)
    resume.check_base({**old, "base": {"unet": "a"}}, record | {"base": {"unet": "a", "first_stage": ""}})
