"""Checkpoints and logs of a run in a bucket, without training."""

import jax
import numpy as np
import pytest

from tests.training.test_checkpoints import abstract, make_state, numbers
from xpsr_jax import sharding
from xpsr_jax.buckets.mirror import mirrored
from xpsr_jax.buckets.paths import BucketPath, as_path
from xpsr_jax.config import Mesh
from xpsr_jax.errors import UserError
from xpsr_jax.training.checkpoints import Checkpoints, Damaged, complete_steps
from xpsr_jax.training.loop import check_run


def test_only_complete_checkpoints_are_restored_on_another_mesh(gs: BucketPath):
    state = make_state(3, sharding.make_mesh(Mesh(data=1, fsdp=8)))
    folder = gs / "run" / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.check_readable()
        for step in (1, 2, 3):
            checkpoints.save(step, state, numbers(), {"step": step}, {"unlogged": step})
            checkpoints.wait()
    assert complete_steps(folder) == [2, 3] and not (folder / ".probe").exists()
    other = abstract(make_state(0, sharding.make_mesh(Mesh(data=4, fsdp=2))))
    (folder / "2" / "commit_success.txt").unlink()  # as if killed before it was complete
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.steps == [3] and complete_steps(folder) == [3]
        data = numbers()
        restored = checkpoints.restore(3, other, data)
        jax.tree.map(np.testing.assert_array_equal, restored.state, state)
        assert restored.log == {"unlogged": 3} and checkpoints.record(3) == {"step": 3}
        assert restored.state.trained["unet"].sharding.mesh.shape == {"data": 4, "fsdp": 2}
        for file in (folder / "3" / "state").rglob("manifest.ocdbt"):
            file.write_bytes(b"nonsense")
        with pytest.raises(Damaged, match=f"the checkpoint {folder}/3 cannot be restored; it is damaged"):
            checkpoints.restore(3, other, None)
        checkpoints.put_aside([3])
        assert checkpoints.steps == [] and (gs / "run" / "damaged" / "3" / "config").is_dir()


def test_checkpoints_on_s3_are_refused(s3: BucketPath):
    with pytest.raises(UserError, match=f"{s3}/run: Orbax writes checkpoints to disks and to gs:// only; name"):
        check_run(s3 / "run")
    check_run(as_path("gs://bucket/run"))


def test_appended_files_are_mirrored(bucket: BucketPath, tmp_path):
    run = bucket / "run"
    (run / "log.txt").write_bytes(b"before\n")
    (run / "other").write_bytes(b"elsewhere")
    with pytest.raises(KeyboardInterrupt), mirrored(run, begun_with=("log.txt", "none")) as mirror:
        assert mirror.follows and not mirror.is_due and mirror.place.name == "run"
        (mirror.place / "sub").mkdir()
        for text, name in (("1\n", "log.txt"), ("2\n", "sub/board")):
            with (mirror.place / name).open("a") as file:
                file.write(text)
        mirror.push()
        assert (run / "log.txt").read_bytes() == b"before\n1\n" and (run / "sub" / "board").read_bytes() == b"2\n"
        (run / "sub" / "board").unlink()
        mirror.push()  # nothing has changed here
        assert not (run / "sub" / "board").exists()
        (mirror.place / "log.txt").write_text("last\n")
        raise KeyboardInterrupt
    assert (run / "log.txt").read_bytes() == b"last\n" and not mirror.place.exists()
    with mirrored(tmp_path, begun_with=("log.txt",)) as local:
        assert local.place == tmp_path and not local.follows and not local.is_due
        local.push()
