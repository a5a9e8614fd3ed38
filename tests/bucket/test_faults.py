"""A busy bucket and broken connections: requests are retried, and a lasting fault is an error of one line."""

import asyncio
import contextlib
import types

import aiobotocore.endpoint
import gcsfs.retry
import numpy as np
import pytest
import s3fs.core

from tests.bucket import servers
from tests.bucket.conftest import bucket_path, forget_connections, use_gcs, use_s3
from xpsr_jax import files
from xpsr_jax.buckets import connection, uploads
from xpsr_jax.buckets.cache import copy_file, local_folder
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.errors import UserError
from xpsr_jax.locks import locked_folder

DATA = np.random.default_rng(0).integers(0, 256, 6 * 2**20, np.uint8).tobytes()  # more than fits into one request


async def at_once(*_: object) -> None:
    """Replaces waiting."""


@pytest.fixture(params=["gs", "s3"])
def shaky(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """A bucket behind a server with faults, and the faults."""
    kind = request.param
    no_wait = types.SimpleNamespace(**{name: getattr(asyncio, name) for name in dir(asyncio)} | {"sleep": at_once})
    monkeypatch.setattr(gcsfs.retry, "asyncio", no_wait)
    monkeypatch.setattr(s3fs.core, "asyncio", no_wait)
    monkeypatch.setattr(connection, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(aiobotocore.endpoint, "asyncio", no_wait)
    serve = servers.gcs_server if kind == "gs" else lambda public: servers.s3_server()
    with servers.faulty(serve) as (url, real, faults):
        (servers.make_gcs_bucket if kind == "gs" else servers.make_s3_bucket)(real, "shaky")
        (use_gcs if kind == "gs" else use_s3)(monkeypatch, url)
        yield bucket_path(f"{kind}://shaky"), faults
    forget_connections()


@pytest.mark.parametrize("what", [429, 503, "drop", "lost", "cut"])
def test_requests_are_retried(shaky: tuple[BucketPath, servers.Faults], what, tmp_path):
    """Each kind of request fails twice. No data is lost, duplicated or cut off."""
    bucket, faults = shaky
    local = tmp_path / "data"
    local.write_bytes(DATA)
    methods = ["GET"] if what == "cut" else ["GET", "POST", "PUT"]
    for method in methods:
        times = [0]

        def matches(asked: str, path: str, method: str = method, times: list[int] = times) -> bool:
            times[0] += asked == method
            return asked == method and times[0] % 2 == 1

        faults.add(matches, 2, what)
    file = bucket / "folder" / "data"
    file.upload(local)
    assert file.stat().st_size == len(DATA)
    with copy_file(file) as copy:
        assert copy.path.read_bytes() == DATA
    with files.new_folder(bucket / "model") as made:
        for name in "ab":
            (made / name).write_text(name)
    assert sorted((bucket / "model").files()) == ["a", "b"]
    assert (local_folder(bucket / "model") / "b").read_text() == "b"
    with locked_folder(bucket / "folder"):  # works even if the answer to its creation was lost
        assert (bucket / "folder" / ".lock").is_file()
    (bucket / "model").remove_tree()
    assert sorted(bucket.files()) == ["folder/data"]
    assert len(faults.made) >= 2 * len(methods) - 2


def test_lasting_faults_are_one_line(shaky: tuple[BucketPath, servers.Faults], tmp_path):
    bucket, faults = shaky
    (bucket / "a").write_bytes(b"before")
    uploads.upload_files(tmp_path, bucket / "empty")
    for what in (429, 503, "drop"):
        faults.rules.clear()
        faults.add(lambda method, path: True, 10**6, what)
        with (
            pytest.raises(UserError, match=f"^{bucket}/a cannot be written: .+") as error,
            files.new_file(bucket / "a") as f,
        ):
            f.write_text("half")
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match=f"^{bucket}/a cannot be read: .+"):
            files.read_regular(bucket / "a", max_bytes=100)
    faults.rules.clear()
    assert (bucket / "a").read_bytes() == b"before"
    # A denied request is not retried.
    faults.add(lambda method, path: True, 10**6, 403)
    with pytest.raises(UserError, match=f"^{bucket}/a cannot be read: .+"), contextlib.suppress(FileNotFoundError):
        (bucket / "a").read_bytes()
