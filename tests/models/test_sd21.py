"""Stable Diffusion 2.1 by its own config.json files, at full size and as shapes only (tests/vectors/README.md)."""

import hashlib
import json
import math

import pytest

from tests.models.golden import VECTORS
from xpsr_jax.config import load_config
from xpsr_jax.models.controlnet import ControlNetConfig
from xpsr_jax.weights import rules
from xpsr_jax.weights.model_folder import load_schedule
from xpsr_jax.weights.networks import AUTOENCODER, CONTROLNET, TEXT_ENCODER, UNET, abstract, parameters, read_config

FOLDER = VECTORS / "sd21"
# Tensors, parameters, and SHA-256 of all keys with their shapes of the same networks in PyTorch, which
# tests/torch/test_live_sd21.py counts again.
STOCK = {
    "unet": (686, 865_910_724, ""),
    "controlnet": (340, 364_228_240, ""),
    "vae": (248, 83_653_863, ""),
    "text_encoder": (372, 340_387_840, ""),
}
