"""The hub's real client, directed to a small server on localhost, with a cache of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import Hub, serving
from tests.weights.conftest import base, released  # noqa: F401
from xpsr_jax.weights import hub as names


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        # The client waits between retries.
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        forget()
        yield server
        forget()
    _http.close_session()


def forget() -> None:
    """Forgets all opened snapshots, as a new process would."""
    names.open_snapshot.cache_clear()
    names._OPENED.clear()


def cached(folder: Path) -> set[str]:
    """The files of a snapshot in the cache."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
