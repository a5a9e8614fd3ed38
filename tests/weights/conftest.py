"""A tiny complete model: the released networks, an autoencoder and a text encoder, all with random weights."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

import xpsr_jax
from xpsr_jax.json_files import write_json
from xpsr_jax.models.configs import AutoencoderConfig, TextEncoderConfig
from xpsr_jax.models.parameters import parameters
from xpsr_jax.weights.networks import AUTOENCODER, TEXT_ENCODER, Network, abstract
from xpsr_jax.weights.rules import torch_key, torch_shape
from xpsr_jax.weights.tensors import Tensor
from xpsr_jax.weights.torch_files import write_folder

TINY_AUTOENCODER = AutoencoderConfig(
    block_out_channels=(8, 8, 16, 16),
    layers_per_block=1,
    norm_num_groups=4,
)
TINY_TEXT_ENCODER = TextEncoderConfig(
    vocab_size=49408, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
)


def random_tensors(network: Network, config) -> dict[str, np.ndarray]:
    """Small random tensors for every PyTorch key of a network."""
    tensors = {}
    for path, param in parameters(abstract(network, config)).items():
        key = torch_key(path, network.names)
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        tensors[key] = 0.1 * rng.standard_normal(torch_shape(path, param.shape), dtype=np.float32)
    return tensors


def write_network(network: Network, config, tensors: dict[str, np.ndarray], folder: Path, **options) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(config.to_json(), folder / "config.json")
    lazy = {key: Tensor.of(key, array) for key, array in tensors.items()}
    write_folder(lazy, folder, network.stem, where=folder, **options)


def copy_released(vectors: Path, folder: Path) -> None:
    """A released `checkpoint-N`: unet/ and controlnet/."""
    for name in ("unet", "controlnet"):
        (folder / name).mkdir(parents=True)
        shutil.copyfile(vectors / "xpsr" / f"{name}_config.json", folder / name / "config.json")
        weights = folder / name / "diffusion_pytorch_model.safetensors"
        shutil.copyfile(vectors / "xpsr" / f"{name}.safetensors", weights)


@pytest.fixture(scope="session")
def released(vectors, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "checkpoint-7"
    copy_released(vectors, folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A Stable Diffusion folder with the components that the released folder lacks."""
    folder = tmp_path_factory.mktemp("base") / "stable-diffusion"
    write_network(AUTOENCODER, TINY_AUTOENCODER, random_tensors(AUTOENCODER, TINY_AUTOENCODER), folder / "vae")
    text = random_tensors(TEXT_ENCODER, TINY_TEXT_ENCODER)
    write_network(TEXT_ENCODER, TINY_TEXT_ENCODER, text, folder / "text_encoder")
    tokenizer = Path(xpsr_jax.__file__).parent / "assets" / "tokenizer"
    shutil.copytree(tokenizer, folder / "tokenizer")
    (folder / "scheduler").mkdir()
    scheduler = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "clip_sample": False,
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder
