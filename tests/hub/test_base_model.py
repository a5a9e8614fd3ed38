"""Training on a base from the hub: the commit is recorded, and used again even if the branch has moved."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from tests.hub.conftest import cached, forget
from tests.training import tiny
from tests.weights.conftest import TINY_TEXT_ENCODER, random_tensors, write_network
from xpsr_jax.errors import UserError
from xpsr_jax.json_files import write_json
from xpsr_jax.models.configs import TextEncoderConfig
from xpsr_jax.training import resume
from xpsr_jax.training.base_model import with_commits
from xpsr_jax.training.checkpoint_source import open_checkpoint
from xpsr_jax.training.export import tokenizer_folder
from xpsr_jax.training.fingerprints import fingerprints
from xpsr_jax.training.loop import train
from xpsr_jax.training.structure import make_structure
from xpsr_jax.weights.convert import convert
from xpsr_jax.weights.networks import TEXT_ENCODER

SMALL = dataclasses.replace(TINY_TEXT_ENCODER, hidden_size=8, intermediate_size=16, num_hidden_layers=1)


def stock(hub, folder: Path, config: TextEncoderConfig = SMALL, **change) -> str:
    """Commits a base that has a text encoder and a tokenizer."""
    tensors = random_tensors(TEXT_ENCODER, config)
    for name, value in change.items():
        tensors[f"text_model.final_layer_norm.{name}"][:] = value
    shutil.rmtree(folder, ignore_errors=True)
    write_network(TEXT_ENCODER, config, tensors, folder / "text_encoder")
    shutil.copytree(Path(tokenizer_folder(tiny.NETWORKS)), folder / "tokenizer")
    return hub.add("sd/base", folder)


def on(base: str, run: Path):
    config = dataclasses.replace(tiny.config(), run=run)
    return dataclasses.replace(config, networks=dataclasses.replace(config.networks, base=(Path(base),)))


def test_a_run_keeps_its_commit(hub, tmp_path):
    first = stock(hub, tmp_path / "files")
    config = with_commits(on("sd/base", tmp_path / "run"))
    assert config.networks.base == (Path(f"sd/base@{first}"),)
    structure = make_structure(config)
    assert "text_encoder" in structure.sources
    folder = tokenizer_folder(config.networks).parent
    assert folder.name == first and "text_encoder/model.safetensors" not in cached(folder), (
        "weights are downloaded only when they are read"
    )
    before = fingerprints(structure)["text_encoder"]
    record = resume.record(config, photographs=5)
    assert record["networks"]["base"] == [f"sd/base@{first}"]
    (tmp_path / "run").mkdir()
    write_json(record, tmp_path / "run" / "config.json")

    second = stock(hub, tmp_path / "files", bias=1)
    forget()
    for name in ("sd/base", "sd/base@main", f"sd/base@{first}"):
        assert with_commits(on(name, tmp_path / "run")) == config
    for name, run in (("sd/base", "other"), (f"sd/base@{second}", "run")):
        other = with_commits(on(name, tmp_path / run))
        assert other.networks.base == (Path(f"sd/base@{second}"),)
    assert fingerprints(make_structure(config))["text_encoder"] == before
    assert fingerprints(make_structure(other))["text_encoder"] != before


def test_local_and_missing_bases(hub, tmp_path):
    config = on(str(tmp_path), tmp_path / "run")
    assert with_commits(config) == config and with_commits(tiny.config()) == tiny.config()
    with pytest.raises(UserError, match=r"sd/nothing is not a local path, and the hub shows you no model sd/nothing"):
        with_commits(on("sd/nothing", tmp_path / "run"))
    named = dict(tokenizer=Path("sd/base:tokenizer"), first_stage="sd/base:text_encoder")
    tokenizer = dataclasses.replace(tiny.NETWORKS, **named)
    commit = stock(hub, tmp_path / "files")
    pinned = with_commits(dataclasses.replace(config, networks=tokenizer)).networks
    assert pinned.tokenizer == Path(f"sd/base@{commit}:tokenizer")
    assert pinned.first_stage == f"sd/base@{commit}:text_encoder"


@pytest.mark.soak
def test_a_run_is_resumed_on_its_commit(hub, tmp_path):
    first = stock(hub, tmp_path / "files")
    photographs = tiny.make_photos(tmp_path / "photographs")
    config = dataclasses.replace(on("sd/base", tmp_path / "run"), images=photographs, steps=1)
    train(config)
    stock(hub, tmp_path / "files", bias=1)
    forget()
    model = train(dataclasses.replace(config, steps=2))
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["networks"]["base"] == [f"sd/base@{first}"] and model is not None
    # Its checkpoint has the same record, which the conversion uses.
    forget()
    shutil.rmtree(tmp_path / "cache")
    done = convert([open_checkpoint(tmp_path / "run")], tmp_path / "out")
    assert done.missing == () and f"sd/base@{first}" in (tmp_path / "out" / "README.md").read_text()
