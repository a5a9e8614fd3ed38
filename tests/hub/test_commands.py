"""xpsr download and xpsr upload, with the small server of the hub's protocol."""

import shutil
from pathlib import Path

import pytest

from tests.hub.conftest import forget
from tests.weights.conftest import TINY_AUTOENCODER, random_tensors, write_network
from xpsr_jax.cli import download, upload
from xpsr_jax.weights import hub as names
from xpsr_jax.weights.model_card import Card, write_card
from xpsr_jax.weights.model_folder import write_index
from xpsr_jax.weights.networks import AUTOENCODER

SD = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_a_short_name_is_downloaded_and_the_files_are_listed(hub, base, capsys):
    needless = {"vae/diffusion_pytorch_model.bin": b"a pickle", "v1-5-pruned.ckpt": b"a pickle"}
    commit = hub.add(SD, base, **needless)
    assert download.main(["stable-diffusion-v1-5"]) == 0
    said = capsys.readouterr().out
    files = sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())
    lines = said.splitlines()
    assert [line.split("  ")[-1] for line in lines[: len(files)]] == files
    size = sum(path.stat().st_size for path in base.rglob("*") if path.is_file()) / 1e6
    assert lines[len(files)] == f"{SD}@{commit}: {len(files)} files, {size:,.1f} MB"
    assert f"Use the model as {SD}, or as {SD}@{commit} to stay with this commit." in said
    assert set(hub.fetched()) == set(files)
    count = len(hub.fetched())
    forget()
    assert download.main([SD]) == 0 and len(hub.fetched()) == count


def test_download_into_a_folder(hub, base, tmp_path, capsys):
    hub.add(
        "a/b", base.parent / "nothing", **{f"sub/{p.relative_to(base)}": p.read_bytes() for p in base.rglob("*.json")}
    )
    assert download.main(["a/b:sub", "--output", str(tmp_path / "out")]) == 0
    for path in base.rglob("*.json"):
        assert (tmp_path / "out" / path.relative_to(base)).read_bytes() == path.read_bytes()
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert f"They were copied to {tmp_path}/out" in capsys.readouterr().out
    assert download.main(["a/b:sub", "--output", str(tmp_path / "out")]) == 1
    assert "already exists" in capsys.readouterr().err


def test_download_of_one_file(hub, base, tmp_path):
    hub.add("a/b", base, **{"loras/style.safetensors": b"bytes"})
    assert download.main(["a/b:loras/style.safetensors", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "style.safetensors").read_bytes() == b"bytes"


def test_xpsr_s_own_weights_are_elsewhere(hub, capsys):
    assert download.main(["xpsr"]) == 1
    said = capsys.readouterr().out
    assert "https://github.com/qyp2000/XPSR" in said and "https://drive.google.com/" in said and "xpsr convert" in said
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stable", "stable is not a name on the hub: use owner/name, or one of stable-diffusion-v1-5, "),
        ("a/b/c", "a/b/c is not a name on the hub"),
        ("a/b", "a/b is not a local path, and the hub shows you no model a/b"),
    ],
)
def test_wrong_names_are_one_line(name, said, hub, capsys):
    assert download.main([name]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    write_network(AUTOENCODER, TINY_AUTOENCODER, random_tensors(AUTOENCODER, TINY_AUTOENCODER), folder / "vae")
    write_index(folder, None, "")
    write_card(folder, Card(licence="mit"), final=folder, defaults=None, note="")
    return folder


def test_an_uploaded_folder_can_be_downloaded(hub, model, tmp_path, capsys, monkeypatch):
    hub.token = "hf_secret"
    (model / "private notes.txt").write_text("not a part of the model")
    assert upload.main([str(model), "me/mine"]) == 1
    assert "the hub does not let you write there (401): log in with `hf auth login`" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert upload.main([str(model), "me/mine", "--message", "First"]) == 0, hub.requests
    assert f"{model} was uploaded to {hub.url}/me/mine" in capsys.readouterr().out
    sent = hub.repositories["me/mine"].commits[hub.repositories["me/mine"].refs["main"]]
    files = {"model_index.json", "README.md", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"}
    assert set(sent) == files
    names.complete(names.local("me/mine") / "vae")
    for name in files:
        assert (names.local("me/mine") / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine", "mine is not a name to upload to: use owner/name"),
        ("me/mine:folder", "is not a name to upload to"),
        ("me/mine", "is not a model folder: expected model_index.json and subfolders such as unet/; found README.md"),
    ],
)
def test_wrong_uploads_are_refused(name, said, hub, model, capsys):
    shutil.rmtree(model / "vae")
    (model / "model_index.json").unlink()
    assert upload.main([str(model), name]) == 1
    assert said in capsys.readouterr().err and hub.requests == []


def test_a_hub_that_cannot_be_reached(hub, model, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert upload.main([str(model), "me/mine"]) == 1
    error = capsys.readouterr().err
    assert "me/mine: the hub cannot be reached" in error and error.count("\n") == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert upload.main([str(model), "me/mine"]) == 1
    assert "HF_HUB_OFFLINE forbids" in capsys.readouterr().err
