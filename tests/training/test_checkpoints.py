"""Checkpoints: saved atomically, restored bit for bit on any mesh; and the settings that may change on resuming."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.training import tiny
from xpsr_jax import sharding
from xpsr_jax.config import Mesh, Optimizer
from xpsr_jax.errors import UserError
from xpsr_jax.training import resume
from xpsr_jax.training.checkpoints import Checkpoints
from xpsr_jax.training.state import TrainState

ROOT = Path(__file__).parents[2]

# Names like those of parameters, with common prefixes.
NAMES = ("unet.down_blocks.0.conv.kernel", "unet.down_blocks.0.conv.bias", "unet.down_blocks.01.conv.kernel", "unet")


def make_state(value, mesh, *, average=True):
    """A state like that of a run, with parameters split over "fsdp"."""
    split, everywhere = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())

    def parameters(seed):
        rng = np.random.default_rng((value, seed))
        return {name: jax.device_put(rng.standard_normal((8, 3), np.float32), split) for name in NAMES}

    optimizer = ({"count": jax.device_put(jnp.int32(value), everywhere), "mu": parameters(1)}, ())
    return TrainState(
        jax.device_put(jnp.int32(value), everywhere), parameters(0), optimizer, parameters(2) if average else None
    )


def abstract(state):
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), state)


def numbers():
    return iter(grain.MapDataset.range(100).shuffle(seed=1).to_iter_dataset())


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(Mesh(data=2, fsdp=4))


@pytest.mark.parametrize("average", [True, False])
def test_a_saved_state_is_restored(average, mesh, tmp_path):
    state, data = make_state(3, mesh, average=average), numbers()
    seen = [next(data) for _ in range(3)]
    expected = jax.tree.map(np.asarray, state)
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.latest is None
        checkpoints.save(3, state, data, {"name": "a run"}, {"steps": 2})
        checkpoints.save(3, state, data, {"name": "saved already"}, {})
        # The next step donates the state immediately, while the checkpoint is still being written.
        jax.jit(lambda state: jax.tree.map(lambda x: x * 0, state), donate_argnums=0)(state)
        following = [next(data) for _ in range(3)]
    assert seen != following

    one = sharding.make_mesh(Mesh(), jax.devices()[:1])
    for other in (mesh, one):
        wanted = abstract(make_state(0, other, average=average))
        data = numbers()
        with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
            assert checkpoints.latest == 3
            assert checkpoints.record(3) == {"name": "a run"}
            restored, log = checkpoints.restore(3, wanted, data)
        assert log == {"steps": 2}
        assert_equal(restored, expected)
        assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, wanted)
        assert [next(data) for _ in range(3)] == following


def test_a_killed_save_leaves_the_older_checkpoint(mesh, tmp_path):
    folder, data = tmp_path / "checkpoints", numbers()
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step, mesh), data, {}, {})
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    # Orbax writes under a temporary name and renames at the end. A process that was killed earlier leaves this.
    killed = folder / "4.orbax-checkpoint-tmp-12"
    shutil.copytree(folder / "3", killed)
    shutil.rmtree(killed / "data")
    next(path for path in (killed / "state").rglob("*") if path.is_file()).unlink()
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest == 3
        assert_equal(checkpoints.restore(3, abstract(make_state(0, mesh)), data).state, make_state(3, mesh))
        checkpoints.save(4, make_state(4, mesh), data, {}, {})
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4"]
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest == 4
        assert_equal(checkpoints.restore(4, abstract(make_state(0, mesh)), data).state, make_state(4, mesh))


def test_allowed_changes_are_listed():
    before = tiny.config()
    now = dataclasses.replace(
        before,
        steps=100,
        mesh=Mesh(data=2, fsdp=4),
        validation=dataclasses.replace(before.validation, every=7),
        optimizer=dataclasses.replace(before.optimizer, learning_rate=1e-4, schedule="cosine"),
    )
    lines = resume.changes(resume.record(before, photographs=5), resume.record(now, photographs=5))
    assert lines == [
        "steps: was 6, is 100",
        "optimizer.learning_rate: was 0.001, is 0.0001",
        "optimizer.schedule: was 'constant', is 'cosine'",
        "mesh.data: was -1, is 2",
        "mesh.fsdp: was 1, is 4",
        "validation.every: was 0, is 7",
    ]
    assert resume.changes(resume.record(now, photographs=5), resume.record(now, photographs=5)) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 1}, "seed: was 0, is 1"),
        ({"batch_size": 16}, "batch_size: was 8, is 16"),
        ({"trained": ((".*", True),)}, r"trained: was \[\['controlnet.*\]\], is \[\['\.\*', True\]\]"),
        ({"data": dataclasses.replace(tiny.config().data, crop_size=128)}, "data.crop_size: was 64, is 128"),
        ({"optimizer": Optimizer(learning_rate=1e-3, ema=None)}, "optimizer.ema: was 0.9, is None"),
        (
            {"networks": dataclasses.replace(tiny.NETWORKS, unet=dataclasses.replace(tiny.UNET, norm_num_groups=2))},
            "networks.unet.norm_num_groups: was 4, is 2",
        ),
    ],
)
def test_other_changes_are_refused_with_both_values(fields, message):
    before = resume.record(tiny.config(), photographs=5)
    now = resume.record(dataclasses.replace(tiny.config(), **fields), photographs=5)
    with pytest.raises(UserError, match=f"cannot resume with other settings.*{message}.*another --name"):
        resume.changes(before, now)


def test_another_base_is_refused():
    before = resume.record(tiny.config(), photographs=5, base={"unet": "a", "controlnet": ""})
    resume.check_base(before, dict(before))
    with pytest.raises(UserError, match=r"other settings \(base.unet: was 'a', is 'b'\)"):
        resume.check_base(before, before | {"base": {"unet": "b", "controlnet": ""}})


def test_other_photographs_are_refused():
    before = resume.record(tiny.config(), photographs=5)
    with pytest.raises(UserError, match="photographs: was 5, is 4"):
        resume.changes(before, resume.record(tiny.config(), photographs=4))


def test_every_pattern_matches_and_the_docs_list_the_fields_that_may_change():
    """A pattern without a match would be a mistake. docs/train/training.md lists exactly the fields that may change."""
    fields = dict(resume._flat(resume.record(tiny.config(), photographs=5)))
    for pattern, _ in resume.MAY_CHANGE:
        assert any(re.fullmatch(pattern, name) for name in fields), pattern
    listed = (
        (ROOT / "docs" / "train" / "training.md").read_text().partition("A resumed run may differ in these settings")[2]
    )
    listed = set(re.findall(r"`([\w.*]+)`", listed.partition("Anything else")[0]))
    allowed = {name for name in fields if resume.may_change(name)}
    assert {
        name for name in allowed if not any(re.fullmatch(each.replace("*", ".*"), name) for each in listed)
    } == set()
    assert {
        each for each in listed if not any(re.fullmatch(each.replace("*", ".*"), name) for name in allowed)
    } == set()


@pytest.mark.parametrize("schema", [None, 0, 2])
def test_a_checkpoint_of_another_schema_is_refused(schema):
    before = resume.record(tiny.config(), photographs=5) | {"schema": schema}
    with pytest.raises(UserError, match=f"has schema {schema}, but this version of xpsr_jax reads and writes schema 1"):
        resume.changes(before, resume.record(tiny.config(), photographs=5))


# TensorStore reports the errors to an event loop that Orbax has already closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_resumes_from_the_newest_intact_checkpoint(mesh, tmp_path):
    """Damaged ones are named and moved away. If all are damaged, it is an error, and nothing is moved."""
    folder, data = tmp_path / "checkpoints", numbers()
    record = resume.record(tiny.config(), photographs=5)
    wanted = abstract(make_state(0, mesh))
    with Checkpoints(folder, keep=4) as checkpoints:
        assert resume.newest(checkpoints, record, wanted, data) is None
        for step in (1, 2, 3, 4):
            checkpoints.save(step, make_state(step, mesh), data, record, {"steps": step})
            next(data)
    for file in (folder / "4" / "state").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    (folder / "3" / "config" / "metadata").write_text('{"schema": 1, "na')
    (folder / "2" / "data" / "metadata").unlink()
    data = numbers()
    with Checkpoints(folder, keep=4) as checkpoints:
        resumed = resume.newest(checkpoints, record | {"steps": 99}, wanted, data)
        assert (resumed.step, resumed.log, next(data)) == (1, {"steps": 1}, next(numbers()))
        assert_equal(resumed.state, make_state(1, mesh))
        skipped = [re.match(r"skipped: the checkpoint .*/(\d) cannot be restored", note) for note in resumed.notes[:3]]
        assert [found and found[1] for found in skipped] == ["4", "3", "2"]
        assert resumed.notes[3:] == ["changed since: steps: was 6, is 99"]
        checkpoints.save(2, make_state(2, mesh), data, record, {})  # the name is free again
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["2", "3", "4"]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]

    for step in ("1", "2"):
        (folder / step / "state" / "_METADATA").unlink()
    with Checkpoints(folder, keep=4) as checkpoints, pytest.raises(UserError, match="No checkpoint is intact"):
        resume.newest(checkpoints, record, wanted, numbers())
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_fields_in_only_one_record_are_ignored():
    before = resume.record(tiny.config(), photographs=5)
    del before["photographs"], before["loss"]
    before["gone"] = 1
    assert resume.changes(before, resume.record(tiny.config(), photographs=5)) == []


@pytest.mark.parametrize("name", ["run", "run[1]", "run*?"])
def test_a_saved_checkpoint_can_be_read_again(name, tmp_path):
    """Orbax treats [1] in a path as a pattern, and did not find its own files there."""
    with Checkpoints(tmp_path / name / "checkpoints", keep=2) as checkpoints:
        checkpoints.check_readable()
        assert list((tmp_path / name / "checkpoints").iterdir()) == []


def test_a_folder_that_loses_data_is_refused_before_training(tmp_path, monkeypatch):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        monkeypatch.setattr(ocp.Checkpointer, "restore", lambda *_, **__: {"numbers": np.zeros(3)})
        with pytest.raises(UserError, match=r"a checkpoint in .* cannot be read again"):
            checkpoints.check_readable()
