"""Training with run, photographs and model in a bucket; killed, and resumed on another mesh."""

import time

import numpy as np
import pytest

from tests.bucket.conftest import forget_connections, use_gcs
from tests.bucket.servers import faulty, gcs_server, make_gcs_bucket
from tests.soak import runs
from tests.training import tiny
from xpsr_jax.buckets import uploads
from xpsr_jax.buckets.cache import local_folder
from xpsr_jax.buckets.paths import BucketPath, as_path
from xpsr_jax.cli import convert
from xpsr_jax.training.checkpoints import complete_steps

pytestmark = pytest.mark.soak
FIELDS = {"steps": 12, "checkpoint_every": 2, "mesh__replicated_bytes": 0, "validation__every": 6}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.make_photos(tmp_path_factory.mktemp("photos")).folder


@pytest.fixture(scope="module")
def on_disk(photos, tmp_path_factory):
    """The same training on a disk, without interruption."""
    run = tmp_path_factory.mktemp("runs") / "single"
    runs.ended_well(runs.start(runs.command(run, photos, **FIELDS)))
    return run


def same_as(run: BucketPath, on_disk) -> None:
    """Compares the lines of the log, the pictures and the exported model."""
    assert complete_steps(run / "checkpoints") == [10, 12]
    assert sorted(run.files()) == sorted({*run.files(), "config.json", "README.md", "losses.png", "log.txt"})
    lines = local_folder(run, lambda name: name == "metrics.jsonl")
    difference = runs.largest_difference(runs.metrics(lines), runs.metrics(on_disk))
    print(f"in a bucket and on a disk: {difference:.1e} of any term")
    assert difference < 1e-4
    ours, theirs = (runs.parameters(each) for each in (local_folder(run / "model"), on_disk / "model"))
    assert ours.keys() == theirs.keys()
    assert max(np.abs(ours[name] - theirs[name]).max() for name in ours) < 1e-3
    for folder in ("samples", "tensorboard"):
        assert (run / folder).is_dir()
    assert not (run / ".lock").exists()


def kill_after_four_steps(job: runs.Job, run: BucketPath) -> None:
    while not (done := complete_steps(run / "checkpoints")) or done[-1] < 4:
        assert all(process.poll() is None for process in job.processes), job.wait()
        time.sleep(0.05)
    job.kill()
    assert (run / ".lock").is_file()


def test_a_killed_run_is_resumed_on_another_mesh(gs: BucketPath, s3: BucketPath, photos, on_disk):
    uploads.upload_files(photos, gs / "photos")
    run, fields = gs / "run", FIELDS | {"mesh__data": 1, "data__workers": 1}
    kill_after_four_steps(runs.start(runs.command(run, gs / "photos", **fields, mesh__fsdp=8), devices=8), run)
    (out,) = runs.ended_well(runs.start(runs.command(run, gs / "photos", **fields, mesh__fsdp=2), devices=2))
    assert "changed since: mesh.fsdp: was 8, is 2" in out and f"model: {run}/model" in out
    same_as(run, on_disk)
    # The newest checkpoint is converted, from the bucket to the bucket.
    assert convert.main([str(run), "--output", f"{gs}/converted"]) == 0
    one, other = (runs.parameters(local_folder(gs / each)) for each in ("run/model", "converted"))
    assert one.keys() == other.keys()
    assert max(np.abs(one[name] - other[name]).max() for name in one) < 1e-6
    # Orbax cannot write to S3, but a checkpoint on S3 can be read.
    uploads.upload_files(local_folder(run / "checkpoints" / "12"), s3 / "checkpoint")
    assert convert.main([f"{s3}/checkpoint", "--output", f"{s3}/converted"]) == 0
    last = runs.parameters(local_folder(s3 / "converted"))
    assert all((last[name] == other[name]).all() for name in other)


@pytest.mark.long
def test_two_processes_are_killed_and_resumed(gs: BucketPath, photos, on_disk):
    uploads.upload_files(photos, gs / "photos")
    run = gs / "run"
    words = runs.command(run, gs / "photos", **FIELDS, mesh__data=2, mesh__fsdp=4)
    kill_after_four_steps(runs.start(words, processes=2, devices=4), run)
    first, second = runs.ended_well(runs.start(words, processes=2, devices=4))
    assert "8 devices of 2 processes" in first and f"model: {run}/model" in first and "model:" not in second
    same_as(run, on_disk)


@pytest.mark.long
def test_throttled_and_cut_off(monkeypatch, photos, on_disk):
    """Some requests of every kind are refused with 429 and 503, and connections break before or after the request."""
    with faulty(gcs_server) as (url, real, faults):
        make_gcs_bucket(real, "bucket")
        for name, value in (("STORAGE_EMULATOR_HOST", url), ("TENSORSTORE_GCS_HTTP_URL", url)):
            monkeypatch.setenv(name, value)
        run = as_path("gs://bucket/run")
        seen: dict[str, int] = {}

        def every(count: int, offset: int):
            def matches(method: str, path: str) -> bool:
                kind = f"{method} {count}"
                seen[kind] = seen.get(kind, offset) + 1
                return seen[kind] % count == 0

            return matches

        for number, what in ((13, 429), (17, 503), (29, "drop")):
            faults.add(every(number, number // 2), 8, what)
        # Asked again about a complete upload, this server has no record of it. Google's server answers correctly.
        lost = every(31, 15)
        faults.add(lambda method, path: "upload_id" not in path and lost(method, path), 8, "lost")
        runs.ended_well(runs.start(runs.command(run, photos, **FIELDS)))
        print(f"{len(faults.made)} faults: { ({what for _, _, what in faults.made}) }")
        assert {what for _, _, what in faults.made} == {429, 503, "drop", "lost"} and len(faults.made) > 20  # of 32
        faults.rules.clear()
        use_gcs(monkeypatch, real)
        same_as(run, on_disk)
    forget_connections()
