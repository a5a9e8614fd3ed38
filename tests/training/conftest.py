"""Photographs and one batch for all tests of training."""

from pathlib import Path

import numpy as np
import pytest

from tests.training import tiny
from xpsr_jax.cli.prepare import main
from xpsr_jax.config import Images
from xpsr_jax.data.pipeline import make_pipeline
from xpsr_jax.training.export import tokenizer_of
from xpsr_jax.training.images import open_images
from xpsr_jax.training.structure import make_structure
from xpsr_jax.weights.networks import NETWORKS, save_network


@pytest.fixture(scope="module", autouse=True)
def quickly(compiled_quickly: None) -> None:
    """Compiles quickly: these steps are large programs on small arrays."""


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return tiny.make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def batches(images: Images) -> list[dict[str, np.ndarray]]:
    """Three batches of 16."""
    config = tiny.config()
    tokenizer = tokenizer_of(config.networks)
    data = make_pipeline(open_images(images), config.data, tokenizer=tokenizer, batch_size=16, epochs=10)
    return [batch for batch, _ in zip(data, range(3), strict=False)]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the tiny text encoder and the same parameters as in `tiny.Run`."""
    folder = tmp_path_factory.mktemp("base")
    structure = make_structure(tiny.config())
    bundle = structure.merge({path: tiny.random_parameter(path, s.shape) for path, s in structure.shapes().items()})
    (folder / "text_encoder").mkdir()
    save_network(NETWORKS["text_encoder"], bundle.text_encoder, folder / "text_encoder")
    return folder


@pytest.fixture(scope="session")
def embeddings(base: Path, images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "embeddings"
    assert main(["embeddings", str(images.folder), "--model", str(base), "--output", str(folder)]) == 0
    return folder
