"""Buckets on local servers, a new one for each test. The package finds the servers only by environment variables."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.bucket import servers
from xpsr_jax.buckets import cache, connection
from xpsr_jax.buckets.paths import BucketPath, as_path

_numbers = itertools.count()


def forget_connections() -> None:
    """Forgets all connections, so that the next use of a bucket reads the environment again."""
    connection._filesystem.cache_clear()
    connection.configure.cache_clear()
    cache._kept.cache_clear()
    for protocol in ("gs", "s3"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


def use_gcs(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Sets the variables of docs/reference/buckets.md."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    forget_connections()


def use_s3(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Sets the variables of docs/reference/buckets.md."""
    for name, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    forget_connections()


@pytest.fixture(scope="session")
def gcs_url() -> Iterator[str]:
    with servers.gcs_server() as url:
        yield url


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    with servers.s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uses another working folder and cache, and checks that no test creates ./gs:/."""
    monkeypatch.setenv("XPSR_JAX_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    assert not [path.name for path in here.iterdir() if path.name.endswith(":")]


@pytest.fixture
def gs(gcs_url: str, monkeypatch: pytest.MonkeyPatch) -> BucketPath:
    """A new bucket on the server for Google Cloud Storage."""
    use_gcs(monkeypatch, gcs_url)
    servers.make_gcs_bucket(gcs_url, name := f"bucket-{next(_numbers)}")
    return bucket_path(f"gs://{name}")


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> BucketPath:
    """A new bucket on the server for S3."""
    use_s3(monkeypatch, s3_url)
    servers.make_s3_bucket(s3_url, name := f"bucket-{next(_numbers)}")
    return bucket_path(f"s3://{name}")


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> BucketPath:
    """A new bucket of either kind."""
    return request.getfixturevalue(request.param)


def bucket_path(text: str) -> BucketPath:
    path = as_path(text)
    assert isinstance(path, BucketPath)
    return path
