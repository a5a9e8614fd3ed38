"""Photographs and one batch for all tests of training."""

import numpy as np
import pytest

from tests.training import tiny
from xpsr_jax.config import Images
from xpsr_jax.data.pipeline import make_pipeline
from xpsr_jax.training.export import tokenizer_of
from xpsr_jax.training.images import open_images


@pytest.fixture(scope="module", autouse=True)
def quickly(compiled_quickly: None) -> None:
    """These steps are long programs on small arrays."""


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
