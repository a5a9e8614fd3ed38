"""The card of a model folder: its content, the sources of the content, and which README is kept."""

import dataclasses
import json
import re
import shutil

import pytest

from tests.training import tiny
from xpsr_jax.config import PAPER
from xpsr_jax.training.conversion import convert
from xpsr_jax.training.run_card import run_card
from xpsr_jax.weights.model_card import Card, card_of, write_card

SD = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def front(text: str) -> dict:
    """The YAML block of a card, read by the hub's own client."""
    from huggingface_hub import ModelCard

    return ModelCard(text).data.to_dict()


def test_the_card_of_a_converted_folder_names_its_sources(base, released, tmp_path):
    shutil.copytree(base, tmp_path / "sd")
    (tmp_path / "sd" / "README.md").write_text(
        f"---\nlicense: creativeml-openrail-m\nbase_model: {SD}\n---\n# Their card\n"
    )
    convert([tmp_path / "sd", released], tmp_path / "my-xpsr")
    text = (tmp_path / "my-xpsr" / "README.md").read_text()
    data = front(text)
    assert data["license"] == "creativeml-openrail-m" and data["base_model"] == SD
    assert data["library_name"] == "xpsr_jax" and data["pipeline_tag"] == "image-to-image"
    assert "super-resolution" in data["tags"]
    assert "\n# my-xpsr\n" in text and "- vae/ from sd/vae\n" in text and "- unet/ from checkpoint-7/unet\n" in text
    assert f"- guidance_scale: {PAPER.guidance_scale}\n" in text and "model_index.json" in text
    assert "The licence of the base is creativeml-openrail-m." in text
    assert str(tmp_path) not in text, "local paths must not be published"


def test_a_missing_licence_is_mentioned(base, tmp_path):
    convert([base / "vae"], tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license" not in front(text) and "The licence of the base was not found beside its files." in text
    assert "A part of an XPSR model for xpsr_jax: vae." in text and "Settings" not in text


def test_the_card_of_a_run(tmp_path):
    config = dataclasses.replace(tiny.config(), run=tmp_path)
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            json.dumps(line) + "\n"
            for line in (
                {"step": 2, "validation_psnr": 20.0, "validation_lpips": 0.5},
                {"step": 3, "loss": 0.1},
                {"step": 4, "validation_psnr": 21.23456, "validation_lpips": 0.4},
                {"step": 6, "validation_psnr": 22.0},
            )
        )
    )
    card = run_card(config, photographs=5, step=5)
    assert card.from_nothing and card.name == "test"
    where = "of 1 validation pictures after step 4"
    assert card.scores == {f"psnr {where}": 21.23456, f"lpips {where}": 0.4}
    (tmp_path / "model").mkdir()
    write_card(tmp_path / "model", card, final=tmp_path / "model", defaults=config.sampling, note=config.note)
    text = (tmp_path / "model" / "README.md").read_text()
    assert "# test\n" in text and "It is a test's.\n" in text
    assert "- stage xpsr, 5 of 6 steps of 8 images\n" in text
    assert "- on 5 photographs of train, crops of 64 pixels, degraded on the way\n" in text
    assert f"- psnr {where}: 21.23\n" in text and "trained from scratch" in text
    # A model made from this one gets both from its card.
    again = card_of([tmp_path / "model"])
    assert again.training == card.training and again.scores == {f"psnr {where}": 21.23, f"lpips {where}": 0.4}


def test_a_run_without_validation_has_no_scores(tmp_path):
    assert run_card(dataclasses.replace(tiny.config(), run=tmp_path), photographs=5, step=5).scores == {}


@pytest.mark.parametrize("theirs", [True, False], ids=["changed", "as written"])
def test_a_readme_changed_by_a_user_is_kept(theirs, tmp_path):
    old, new = tmp_path / "model", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    write_card(old, Card(), final=old, defaults=None, note="")
    first = (old / "README.md").read_text()
    assert re.search(r"<!-- written by xpsr_jax, \w{16} -->\n$", first)
    changed = first.replace("# model", "# My model") if theirs else first
    (old / "README.md").write_text(changed)
    write_card(new, Card(made=("another",)), final=old, defaults=None, note="")
    text = (new / "README.md").read_text()
    assert (text == changed) == theirs and ("- another\n" in text) != theirs


def test_a_user_s_readme_survives_overwriting_the_folder(base, tmp_path):
    convert([base / "vae"], tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("my own text")
    convert([base / "vae"], tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "README.md").read_text() == "my own text"


@pytest.mark.parametrize(
    "text",
    ["", "no front matter", "---\nlicense: [a, b]\n---\n", "---\nlicense:\n---\n", "---\nlicense: mit", "\xff\x00---"],
)
def test_readmes_without_usable_content(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    assert card_of([tmp_path]) == Card() and card_of([tmp_path / "nowhere"]) == Card()


def test_licences_that_the_hub_calls_other(tmp_path):
    text = "---\r\nlicense: other\r\nlicense_name: my-licence\r\nbase_model: a/b\r\n---\r\n"
    (tmp_path / "README.md").write_bytes(text.encode())
    card = card_of([tmp_path])
    assert card == Card(licence="my-licence", base=("a/b",))
    (tmp_path / "out").mkdir()
    write_card(tmp_path / "out", card, final=tmp_path / "out", defaults=None, note="")
    data = front((tmp_path / "out" / "README.md").read_text())
    assert (data["license"], data["license_name"], data["base_model"]) == ("other", "my-licence", "a/b")
