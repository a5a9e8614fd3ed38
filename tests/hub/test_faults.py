"""Errors of the hub and of the network become one line that says what to do. No broken file is left in the cache."""

import re
import socket

import pytest

from tests.hub.conftest import cached, forget
from tests.hub.server import Handler
from xpsr_jax.errors import UserError
from xpsr_jax.weights import hub as names
from xpsr_jax.weights.sources import open_source

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def answer(status: int, **headers: str):
    """A fault that answers every request with this status."""

    def fault(handler: Handler) -> bool:
        handler.say(status, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def of_the_weights(act):
    """A fault that acts only on the download of the weights."""

    def fault(handler: Handler) -> bool:
        return handler.command == "GET" and handler.path.endswith(WEIGHTS) and act(handler)

    return fault


def cut(handler: Handler, size: int | None = None) -> bool:
    """Announces the whole length and sends the first half; with `size`, announces and sends that many bytes."""
    content = next(iter(handler.server.repositories["a/b"].commits.values()))[WEIGHTS]
    handler.send_response(200)
    handler.send_header("Content-Length", str(size or len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2] if size is None else content[:size])
    handler.close_connection = True
    return True


def hang_up(handler: Handler) -> bool:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def refused(name: str = "a/b", network: str | None = "autoencoder") -> str:
    """The error of opening a source, which must be one line."""
    with pytest.raises(UserError) as caught:
        source = open_source(names.Path(name))
        if network:
            source.networks[network]()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600, line
    return line


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            answer(401, X_Error_Message="Invalid credentials in Authorization header"),
            r"denies you access \(401\).*HF_TOKEN",
        ),
        (answer(401, X_Error_Code="RepoNotFound"), "not a local path, and the hub shows you no model a/b"),
        (answer(403, X_Error_Code="GatedRepo"), "its owner must grant access.*hf auth login"),
        (answer(403), r"denies you access \(403\)"),
        (answer(429), r"too many requests to the hub \(429\): try again"),
        (answer(503), "error 503; try again later"),
        (answer(404, X_Error_Code="RepoNotFound"), "the hub shows you no model a/b: check the name"),
        (answer(404, X_Error_Code="RevisionNotFound"), "no such revision"),
        (answer(200), "cannot be downloaded from the hub"),
    ],
)
def test_errors_of_the_hub(fault, said, hub, base):
    hub.add("a/b", base)
    hub.fault = fault
    assert re.search(said, refused())


def test_no_network(hub, base, monkeypatch):
    hub.add("a/b", base)
    hub.fault = hang_up
    assert "a/b is not a local path, and the hub cannot be reached" in refused()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert re.search("a/b is not a local path, and the hub cannot be reached .*refused.*name a local folder", refused())


def test_missing_revisions_and_folders(hub, base):
    hub.add("a/b", base, **{"one.ckpt": b"", "files/two.safetensors": b""})
    assert "a/b has no such revision" in refused("a/b@nowhere")
    assert "a/b on the hub has no nowhere; it has files, one.ckpt, scheduler" in refused("a/b:nowhere")
    assert "a/b:files is not a model folder; name one of its files, a/b:files/two.safetensors" in refused("a/b:files")


def test_a_listed_file_that_is_missing(hub, base):
    hub.add("a/b", base)

    def missing(handler: Handler) -> bool:
        if "/resolve/" not in handler.path or not handler.path.endswith(WEIGHTS):
            return False
        handler.say(404, code="EntryNotFound")
        return True

    hub.fault = missing
    assert "the hub lists a file that it does not have" in refused()


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda handler: cut(handler, size=1000), "a downloaded file has the wrong size"),
        (lambda handler: answer(429)(handler), "too many requests"),
        (lambda handler: answer(401)(handler), "denies you access|shows you no model a/b"),
    ],
)
def test_errors_during_a_download(act, said, hub, base):
    hub.add("a/b", base)
    hub.fault = of_the_weights(act)
    assert re.search(said, refused())
    assert WEIGHTS not in cached(names.local("a/b"))
    hub.fault = lambda handler: False
    assert open_source(names.Path("a/b")).networks["autoencoder"]().tensors, "the same command works later"


def test_a_broken_download_is_resumed_where_it_broke(hub, base, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add("a/b", base)
    broken: list[str] = []

    def once(handler: Handler) -> bool:
        broken.append(handler.headers.get("Range", ""))
        return len(broken) == 1 and cut(handler)

    hub.fault = of_the_weights(once)
    assert open_source(names.Path("a/b")).networks["autoencoder"]().tensors
    whole_chunks = (base / WEIGHTS).stat().st_size // 2 // 1000 * 1000
    assert broken == ["", f"bytes={whole_chunks}-"]


def test_a_connection_that_stays_broken(hub, base):
    hub.add("a/b", base)
    hub.fault = of_the_weights(hang_up)
    assert "the hub cannot be reached" in refused()
    assert WEIGHTS not in cached(names.local("a/b"))


def test_the_cache_is_used_if_the_hub_has_too_many_requests(hub, base, capsys):
    hub.add("a/b", base)
    open_source(names.Path("a/b")).networks["autoencoder"]()
    forget()
    hub.fault = answer(429)
    assert open_source(names.Path("a/b")).networks["autoencoder"]().tensors
    assert "using cached commit" in capsys.readouterr().err
