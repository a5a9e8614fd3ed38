"""configs/sd21.py: its trained parameters at full size, and its small variant from training to a restored picture."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

import xpsr_jax
from tests.training import tiny
from xpsr_jax.config import Validation, load_config
from xpsr_jax.data.captions import Caption
from xpsr_jax.inference.restore import restore
from xpsr_jax.training.loop import train
from xpsr_jax.training.structure import make_structure

CONFIG = "configs/sd21.py"


@pytest.mark.more
def test_full_size_on_the_published_folder(vectors):
    """The whole ControlNet is trained, and the UNet's Conditional Attention."""
    config = load_config(CONFIG)
    base = vectors / "sd21"
    structure = make_structure(dataclasses.replace(config, networks=dataclasses.replace(config.networks, base=(base,))))
    # The folder's networks equal those in the config. SD 2.1 predicts the velocity.
    assert dataclasses.replace(structure.networks, base=config.networks.base) == config.networks
    assert structure.sources == {name: base / sub for name, sub in SOURCES.items()}
    shapes = structure.shapes()
    trained = {path: math.prod(shapes[path].shape) for path in structure.trained}
    controlnet = sum(count for path, count in trained.items() if path.startswith("controlnet."))
    assert controlnet == 626_115_149
    assert sum(trained.values()) - controlnet == 248_234_560  # Conditional Attention
    assert sum(trained.values()) == 874_349_709
    frozen = sum(math.prod(shapes[path].shape) for path in structure.frozen)
    assert frozen == 865_910_724 + 83_653_863 + 340_387_840  # UNet, autoencoder, text encoder, all stock


SOURCES = {"unet": "unet", "autoencoder": "vae", "text_encoder": "text_encoder"}


@pytest.mark.soak
def test_the_small_variant_trains_and_restores(images, tmp_path):
    """Two training steps on photographs without captions, export, loading, and one picture in two sampling steps."""
    photos = tmp_path / "photos"
    shutil.copytree(images.folder, photos, ignore=shutil.ignore_patterns("*.jsonl"))
    config = load_config(f"{CONFIG}:tiny")
    config = dataclasses.replace(
        config,
        run=tmp_path / "run",
        steps=2,
        trained=tiny.TRAINED,  # a part of each kind, because all parameters take 1.5 times as long
        images=dataclasses.replace(config.images, folder=photos),
        validation=Validation(every=0),
        log_every=1,
    )
    folder = train(config)
    lines = [json.loads(line) for line in (config.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line[name]) for line in lines for name in ("loss", "mse", "constraint", "gradient_norm"))
    model = xpsr_jax.load(folder)
    assert model.schedule.prediction_type == "v_prediction"
    assert model.unet.config.use_linear_projection and model.unet.config.heads == (1, 2)
    assert model.text_encoder.config.hidden_act == "gelu"
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    (restored,) = restore(model, [image], [Caption("a picture", "blurry")])
    assert restored.shape == (64, 64, 3) and restored.std() > 1
