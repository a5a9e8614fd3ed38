"""Training runs the same program that preflight compiles, because both use the same plan."""

import dataclasses
from pathlib import Path

import pytest

from tests.training import tiny
from xpsr_jax import sharding
from xpsr_jax.config import Images, Mesh
from xpsr_jax.data.pipeline import make_pipeline
from xpsr_jax.pods import programs
from xpsr_jax.pods.preflight import compiled_settings
from xpsr_jax.training import loop
from xpsr_jax.training.export import tokenizer_of
from xpsr_jax.training.images import open_images
from xpsr_jax.training.plan import example_shapes, make_plan
from xpsr_jax.training.structure import make_structure

# All kernels, even the smallest, are split over four of eight devices.
CONFIG = dataclasses.replace(
    tiny.config(), batch_size=16, accumulation=2, mesh=Mesh(data=2, fsdp=4, replicated_bytes=0)
)


class Lowered(Exception):
    """Ends a training at its first step, with the text of the step's program."""


def with_embeddings(config, base: Path, folder: Path):
    networks = dataclasses.replace(config.networks, base=(base,))
    data = dataclasses.replace(config.data, low_caption_from="file", embeddings=folder)
    return dataclasses.replace(config, networks=networks, data=data)


@pytest.mark.parametrize("embedded", [pytest.param(False, marks=pytest.mark.soak), True])
def test_the_loop_and_preflight_lower_the_same_program(
    embedded, images: Images, base: Path, embeddings: Path, tmp_path, monkeypatch
):
    """The texts are equal, including shardings of parameters, moments and batch, donation and accumulation."""
    config = dataclasses.replace(CONFIG, images=images, run=tmp_path / "run")
    config = with_embeddings(config, base, embeddings) if embedded else config
    plan = make_plan(config, sharding.make_mesh(config.mesh))
    split = [path for path, where in plan.shardings.items() if "fsdp" in where.spec]
    assert len(plan.structure.trained.intersection(split)) == 23  # of 46

    class Step:
        def __init__(self, step):
            self.step = step

        def __call__(self, *arguments):
            raise Lowered(self.step.lower(*arguments).as_text())

    def watched(*arguments):
        plan = make_plan(*arguments)
        return dataclasses.replace(plan, step=Step(plan.step))

    monkeypatch.setattr(loop, "make_plan", watched)
    with pytest.raises(Lowered) as trained:
        loop.train(config)
    text = programs.train_step(config, sharding.make_mesh(config.mesh)).lower().as_text()
    assert text == str(trained.value)
    assert '"fsdp"' in text and ("77x8xf32" in text) and ("77xi32" in text) != embedded


@pytest.mark.parametrize("kind", ["tokens", "embeddings", "undegraded"])
def test_the_shapes_are_those_of_real_batches(kind, images: Images, base: Path, embeddings: Path):
    config = with_embeddings(CONFIG, base, embeddings) if kind == "embeddings" else CONFIG
    data = dataclasses.replace(config.data, degrade=kind != "undegraded")
    batch = next(iter(make_pipeline(open_images(images), data, tokenizer=tokenizer_of(config.networks), batch_size=2)))
    del batch["index"]
    shapes = example_shapes(dataclasses.replace(config, data=data), make_structure(config))
    assert {name: (array.shape[1:], array.dtype) for name, array in batch.items()} == {
        name: (each.shape, each.dtype) for name, each in shapes.items()
    }


def test_a_report_is_reused_only_for_the_same_program(tmp_path):
    """The folder of the embeddings has no effect, but using embeddings has one."""

    def changed(**fields):
        return compiled_settings(dataclasses.replace(CONFIG, **fields))

    def data(**fields):
        return changed(data=dataclasses.replace(CONFIG.data, **fields))

    kept = compiled_settings(CONFIG)
    assert kept == changed(name="other", log_every=7, images=Images(folder=tmp_path)) == data(workers=3)
    one, other = (data(embeddings=tmp_path / name, low_caption_from="file") for name in "ab")
    assert one == other != kept
    assert changed(mesh=dataclasses.replace(CONFIG.mesh, replicated_bytes=2**18)) != kept
    assert data(degrade=False) != kept != data(crop_size=128)
