"""Few-step training: the steps of student and critic, the exported model, the losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xpsr_jax
from tests.training import tiny
from xpsr_jax import sharding
from xpsr_jax.config import FEW_STEP, Mesh, load_config
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.errors import UserError
from xpsr_jax.models.parameters import parameters
from xpsr_jax.training import adapters
from xpsr_jax.training.checkpoint_source import open_checkpoint
from xpsr_jax.training.few_step_losses import draw, embed_texts, matching_loss, student_estimate, student_timesteps
from xpsr_jax.training.loop import train
from xpsr_jax.training.parameters import random_parameters
from xpsr_jax.training.plan import loss_constants
from xpsr_jax.training.structure import make_structure
from xpsr_jax.weights.convert import convert


def moved(before, after):
    """The paths whose arrays have changed."""
    return {path for path, array in before.items() if not np.array_equal(array, np.asarray(after[path]))}


@pytest.fixture(scope="module")
def turns(batches):
    """A training, its states at the start and after each of two steps, and the steps' terms."""
    config = dataclasses.replace(tiny.config("few_step"), batch_size=2, mesh=Mesh(1, 1))
    run = tiny.Run(config, 1)
    states, terms = [jax.tree.map(np.asarray, run.state)], []
    for batch in batches[:2]:
        terms.append(run.advance({name: array[:2] for name, array in batch.items()}, loss_constants(config)))
        states.append(jax.tree.map(np.asarray, run.state))
    return run, states, terms


@pytest.mark.soak
def test_critic_and_student_take_turns_in_one_program(turns):
    run, (start, first, second), terms = turns
    critic = {path for path in run.structure.trained if path.startswith(adapters.CRITIC)}
    assert critic and moved(start.trained, first.trained) <= critic and moved(start.trained, first.trained)
    changed = moved(first.trained, second.trained)
    assert changed and not changed & critic
    assert any(path.startswith("student.") for path in changed) and any("controlnet." in path for path in changed)
    assert run.step._cache_size() == 1
    counts = {name: int(second.optimizer[name][1][0].count) for name in ("student", "critic")}
    assert counts == {"student": 1, "critic": 1}
    assert terms[0]["critic"] > 0 and terms[0]["l1"] == 0
    assert terms[1]["critic"] == 0 and min(terms[1][name] for name in ("l1", "perceptual", "constraint")) > 0
    assert terms[1]["loss"] == pytest.approx(
        (terms[1]["l1"] + 0.5 * terms[1]["perceptual"] + 0.05 * terms[1]["constraint"] + terms[1]["realism"]) / 2,
        rel=1e-5,
    )


@pytest.mark.soak
def test_without_a_critic_every_step_trains_the_student(batches):
    """The UNet and the decoder can then be trained themselves, without adapters."""
    config = tiny.config("few_step")
    few_step = dataclasses.replace(config.few_step, realism="none", adapted=())
    rules = ((r"unet\.conv_out\..*", True), (r"autoencoder\.decoder\.conv_out\..*", True))
    config = dataclasses.replace(
        config, few_step=few_step, trained=config.trained + rules, batch_size=2, mesh=Mesh(1, 1)
    )
    run = tiny.Run(config, 1)
    assert not run.structure.extra
    before = jax.tree.map(np.asarray, run.state)
    batch = {name: array[:2] for name, array in batches[0].items()}
    terms = [run.advance(batch, loss_constants(config)) for _ in range(2)]
    assert all(set(each) == {"loss", "l1", "perceptual", "constraint", "gradient_norm"} for each in terms)
    for each in terms:
        assert each["loss"] == pytest.approx(
            each["l1"] + 0.5 * each["perceptual"] + 0.05 * each["constraint"], rel=1e-5
        )
    assert terms[1]["loss"] < terms[0]["loss"]
    changed = moved(before.trained, jax.tree.map(np.asarray, run.state.trained))
    assert {"unet.conv_out.kernel", "autoencoder.decoder.conv_out.kernel"} <= changed == run.structure.trained


@pytest.mark.soak
@pytest.mark.parametrize("start", ["lr", "lr_without_noise"])
def test_a_start_without_noise(batches, start):
    """The student's first estimate then depends on no random number: those of the noise and of the posterior."""
    config = tiny.config("few_step")
    few_step = dataclasses.replace(config.few_step, realism="none", adapted=(), evaluations=(1,))
    sampling = dataclasses.replace(config.sampling, strength=0.1, start=start)
    config = dataclasses.replace(config, few_step=few_step, sampling=sampling, batch_size=2, mesh=Mesh(1, 1))
    structure = make_structure(config)
    networks = structure.merge(random_parameters(structure, structure.shapes(), seed=0))
    batch = {name: jnp.asarray(array[:2]) for name, array in batches[0].items()}
    schedule = structure.networks.schedule

    @jax.jit
    def estimate(keys):
        negative_ids = loss_constants(config).negative_ids
        shape = networks.autoencoder.encode(batch["hr"]).shape[1:]
        draws = draw(keys, shape, seed=0, schedule=schedule, evaluations=(1,), strength=0.1)
        texts = embed_texts(networks, batch, negative_ids)
        return student_estimate(networks, batch, texts, config=config, schedule=schedule, draws=draws).latents

    first, second = (np.asarray(estimate(batch["key"] + more)) for more in (0, 1))
    assert np.isfinite(first).all()
    assert np.array_equal(first, second) == (start == "lr_without_noise")


@pytest.mark.soak
def test_only_exported_parameters_are_averaged(turns):
    _, states, _ = turns
    average = states[-1].average
    assert average.keys() == adapters.exported(states[-1].trained)
    assert not any(path.startswith(("critic.", "teacher.")) for path in average)


def test_the_teacher_is_a_frozen_copy_of_the_trained_parameters():
    structure = make_structure(tiny.config("few_step"))
    teacher = {path.removeprefix("teacher.") for path in structure.frozen if path.startswith("teacher.")}
    own = {path for path in structure.trained if not path.startswith(("student.", "critic."))}
    # Only the student has the constraint's heads.
    assert teacher == {path for path in own if "conv_degradation" not in path and "to_rgbs" not in path}
    values = random_parameters(structure, structure.shapes(), seed=0)
    assert all(np.array_equal(values[f"teacher.{path}"], values[path]) for path in teacher)


def test_adapters_start_without_effect_and_are_merged():
    structure = make_structure(tiny.config("few_step"))
    values = random_parameters(structure, structure.shapes(), seed=0)
    names = {p for p in structure.extra if p.startswith("student.")}
    assert {p.rpartition(".")[2] for p in names} == {"down", "up"}
    before, begun = parameters(structure.abstract), parameters(structure.merge(values))
    assert before.keys() == begun.keys()
    assert all(np.array_equal(begun[path], values[path]) for path in begun)
    path = "unet.conv_out.kernel"
    up = values[f"student.{path}.up"] + 0.1
    merged = parameters(structure.merge(values | {f"student.{path}.up": up}))[path]
    expected = values[path] + np.einsum("hwir,ro->hwio", values[f"student.{path}.down"], up)
    np.testing.assert_allclose(merged, expected, atol=1e-6)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """The folder of two trainings of 4 steps with equal settings: one uninterrupted, one resumed after step 2."""
    folder = tmp_path_factory.mktemp("few_step")
    config = tiny.config("few_step")
    config = dataclasses.replace(config, images=images, batch_size=2, mesh=Mesh(1, 1), checkpoint_every=2, steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda sizes: _mesh(sizes))
        whole = dataclasses.replace(config, run=folder / "whole")
        train(whole)
        part = dataclasses.replace(config, run=folder / "part")
        train(dataclasses.replace(part, steps=2))
        train(part)
    return folder


def _mesh(sizes):
    return jax.make_mesh(
        (1, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )


def model_bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.soak
def test_a_resumed_training_ends_bit_for_bit_the_same_and_its_checkpoint_converts_to_the_export(run, tmp_path):
    whole, part = (model_bytes(run / name / "model") for name in ("whole", "part"))
    assert whole and whole == part
    convert([open_checkpoint(run / "whole")], tmp_path / "converted")
    assert model_bytes(tmp_path / "converted") == whole


@pytest.mark.soak
def test_the_exported_model_samples_in_few_steps_by_default(run):
    model = xpsr_jax.load(run / "whole" / "model")
    assert model.defaults == tiny.config("few_step").sampling
    assert (model.defaults.sampler, model.defaults.steps, model.defaults.spacing) == ("consistency", 1, "trailing")


@pytest.mark.soak
@pytest.mark.long
@pytest.mark.parametrize("variant", ["few_step", "adversarial"])
def test_meshes_and_accumulation_change_nothing(batches, variant):
    terms = []
    for devices, mesh, accumulation in ((1, (1, 1), 1), (8, (2, 4), 2)):
        sizes = Mesh(*mesh, replicated_bytes=0)
        config = dataclasses.replace(tiny.config(variant), batch_size=16, mesh=sizes, accumulation=accumulation)
        made = tiny.Run(config, devices)
        terms.append([made.advance(batch, loss_constants(config)) for batch in batches])
    for one, many in zip(*terms, strict=True):
        assert one == pytest.approx(many, rel=1e-4, abs=1e-6)


@pytest.mark.soak
def test_a_step_at_full_size_as_shapes():
    """configs/few_step.py at Stable Diffusion's size: 868 million of the networks' own parameters are trained."""
    config = load_config("configs/few_step.py")
    networks = dataclasses.replace(
        config.networks, base=(), from_scratch=("unet", "controlnet", "autoencoder", "text_encoder")
    )
    structure = make_structure(dataclasses.replace(config, networks=networks))
    shapes = structure.shapes()
    sizes = {
        prefix: sum(int(np.prod(shape.shape)) for path, shape in shapes.items() if path.startswith(prefix))
        for prefix in ("student.", "critic.", "teacher.")
    }
    own = sum(int(np.prod(shapes[p].shape)) for p in structure.trained if not p.startswith(("student.", "critic.")))
    assert own == 868_451_469
    assert sizes["student."] == sizes["critic."]
    assert 10e6 < sizes["student."] < 60e6
    heads = {p for p in shapes if p.startswith("controlnet.") and ("conv_degradation" in p or "to_rgbs" in p)}
    assert sizes["teacher."] == own - sum(int(np.prod(shapes[p].shape)) for p in heads)


def test_timesteps_of_the_student():
    assert student_timesteps(Schedule(), (1, 2, 4)) == (999, (749, 499, 249))
    assert student_timesteps(Schedule(), (1,)) == (999, ())
    assert student_timesteps(Schedule(), (1, 2, 4), 0.25) == (249, (187, 124, 61))
    assert student_timesteps(Schedule(), (1,), 0.7) == (499, ())
    keys = jnp.arange(64, dtype=jnp.uint32)
    draws = draw(keys, (4, 4, 4), seed=0, schedule=Schedule(), evaluations=(1, 2, 4))
    assert set(np.asarray(draws.timestep).tolist()) == {999, 749, 499, 249}
    assert 0.3 < np.mean(np.asarray(draws.timestep) == 999) < 0.7
    again = draw(keys[:3], (4, 4, 4), seed=0, schedule=Schedule(), evaluations=(1, 2, 4))
    np.testing.assert_array_equal(draws.hop[:3], again.hop)


def test_distribution_matching_moves_towards_the_teacher():
    rng = np.random.default_rng(0)
    clean, real, own = (jnp.asarray(rng.standard_normal((2, 3, 3, 4)), jnp.float32) for _ in range(3))
    gradient = jax.grad(lambda x: matching_loss(x, real=real, own=own))(clean)
    size = np.abs(clean - real).mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(gradient, (own - real) / size / clean.size, rtol=1e-5, atol=1e-7)
    assert float(matching_loss(clean, real=real, own=real)) == 0


def test_an_adapter_of_a_trained_kernel_is_refused():
    config = tiny.config("few_step")
    adapted = ((r"unet\..*\.kernel", True),)
    with pytest.raises(UserError, match="is trained itself"):
        make_structure(dataclasses.replace(config, few_step=dataclasses.replace(config.few_step, adapted=adapted)))


@pytest.mark.soak
def test_a_step_with_nan_changes_nothing(turns, batches):
    """The next step changes nothing either, for the student and for the critic."""
    run, _, _ = turns
    constants = loss_constants(run.config)
    before = jax.tree.map(np.asarray, run.state)
    batch = {name: array[:2] for name, array in batches[2].items()}
    bad = batch | {"hr": np.full_like(batch["hr"], np.nan), "lr": np.full_like(batch["lr"], np.nan)}
    assert np.isnan(run.advance(bad, constants)["loss"])
    assert np.isfinite(run.advance(batch, constants)["loss"])
    jax.tree.map(np.testing.assert_array_equal, run.state.before_failure, before)


def test_the_preset():
    assert (FEW_STEP.sampler, FEW_STEP.steps, FEW_STEP.spacing, FEW_STEP.guidance_scale) == (
        "consistency",
        1,
        "trailing",
        0.0,
    )
