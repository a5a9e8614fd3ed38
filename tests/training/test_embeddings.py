"""Text embeddings on disk: the loss is the same with them, and wrong embeddings are refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.training import tiny
from xpsr_jax.cli.prepare import main
from xpsr_jax.config import Images
from xpsr_jax.data.captions import Caption
from xpsr_jax.data.embeddings import TextEmbeddings
from xpsr_jax.data.examples import tokenize_caption
from xpsr_jax.data.pipeline import make_pipeline
from xpsr_jax.errors import UserError
from xpsr_jax.training.export import tokenizer_of
from xpsr_jax.training.fingerprints import check_embeddings, fingerprints
from xpsr_jax.training.images import open_images
from xpsr_jax.training.losses import xpsr_loss
from xpsr_jax.training.structure import make_structure


@pytest.mark.soak
def test_the_loss_is_the_same(images: Images, embeddings: Path):
    """In float32, with dropped captions and clean inputs. With embeddings the program does not use the text encoder."""
    config = tiny.config()
    data = dataclasses.replace(config.data, low_caption_from="file", caption_dropout=0.3, clean_input_probability=0.3)
    structure, tokenizer = make_structure(config), tokenizer_of(config.networks)
    parameters = {path: tiny.random_parameter(path, s.shape) for path, s in structure.shapes().items()}

    def loss(parameters, batch):
        networks = structure.merge(parameters)
        return xpsr_loss(networks, batch, schedule=structure.networks.schedule, loss=config.loss, seed=0)[0]

    losses = []
    for where in (None, embeddings):
        source, data = open_images(images), dataclasses.replace(data, embeddings=where)
        batches = make_pipeline(source, data, tokenizer=tokenizer, batch_size=8, epochs=5)
        batches = [{name: v for name, v in batch.items() if name != "index"} for batch in batches]
        assert len(batches) == 3
        texts = {name for name in batches[0] if name.startswith(("high", "low"))}
        assert texts == ({"high_embedding", "low_embedding"} if where else {"high_ids", "low_ids"})
        step = jax.jit(loss).trace(parameters, batches[0])
        unused = unused_parameters(step.jaxpr, parameters)
        assert {path for path in unused if path.startswith("text_encoder.")} == (
            {path for path in parameters if path.startswith("text_encoder.")} if where else set()
        )
        compiled = step.lower().compile()
        losses.append([float(compiled(parameters, batch)) for batch in batches])
    np.testing.assert_allclose(*losses, rtol=1e-6)  # measured 8e-8


def unused_parameters(jaxpr: Any, parameters: dict[str, np.ndarray]) -> set[str]:
    """The parameters that no operation of a program reads. They are the program's first arguments."""
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    paths = sorted(parameters)
    return {path for path, variable in zip(paths, jaxpr.jaxpr.invars, strict=False) if id(variable) not in read}


def test_float16_embeddings_take_half_the_space(base: Path, images: Images, embeddings: Path, tmp_path: Path):
    half = tmp_path / "half"
    arguments = ["embeddings", str(images.folder), "--model", str(base), "--output", str(half), "--dtype", "float16"]
    assert main(arguments) == 0
    tokenizer, text = tokenizer_of(tiny.NETWORKS), "picture 0.png"
    found = [TextEmbeddings(folder).find(tokenize_caption(text, tokenizer), text) for folder in (embeddings, half)]
    assert found[1].dtype == np.float32
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)


def test_captions_without_an_embedding(images: Images, embeddings: Path):
    config = dataclasses.replace(tiny.config().data, embeddings=embeddings)
    tokenizer = tokenizer_of(tiny.NETWORKS)
    with pytest.raises(UserError, match=r"only the captions of files\. Set data\.low_caption_from to file"):
        make_pipeline(open_images(images), config, tokenizer=tokenizer, batch_size=1)
    source = open_images(images)
    source._captions = dict.fromkeys(source.names, Caption("something else"))  # type: ignore[attr-defined]
    file = dataclasses.replace(config, low_caption_from="file", caption_dropout=0.0)
    with pytest.raises(UserError, match="has no embedding of the caption 'something else'"):
        next(iter(make_pipeline(source, file, tokenizer=tokenizer, batch_size=1)))
    assert TextEmbeddings(embeddings).find(tokenize_caption("", tokenizer), "").shape == (77, 8)
    with pytest.raises(UserError, match="has no text embeddings"):
        TextEmbeddings(images.folder)


def test_embeddings_of_another_text_encoder(base: Path, embeddings: Path, tmp_path: Path):
    config = tiny.config()
    networks = dataclasses.replace(config.networks, base=(base,))
    data = dataclasses.replace(config.data, embeddings=embeddings)
    config = dataclasses.replace(config, data=data, networks=networks)
    structure = make_structure(config)
    found = fingerprints(structure)
    check_embeddings(config, structure, found)
    with pytest.raises(UserError, match="were not made by this base's text encoder"):
        check_embeddings(config, structure, found | {"text_encoder": "another"})
    everything = dataclasses.replace(config, trained=((r"text_encoder\..*", True),))
    with pytest.raises(UserError, match="need a text encoder that does not change"):
        check_embeddings(everything, make_structure(everything), found)
    assert json.loads((embeddings / "embeddings.json").read_text())["text_encoder"] == found["text_encoder"]
