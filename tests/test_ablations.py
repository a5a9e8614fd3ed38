"""configs/ablations.py: the change of each variant, and its number of trained parameters at full size."""

import dataclasses
import functools
import math

import pytest

from configs.ablations import VARIANTS
from xpsr_jax.config import load_config
from xpsr_jax.models.parameters import parameters
from xpsr_jax.training.structure import select
from xpsr_jax.weights import networks

# Trained parameters of the ControlNet. Conditional Attention has 248,234,560 more.
CONTROLNET = {
    "default": 620_216_909,
    "serial": 489_433_549,  # without the fusing transformers
    "high": 361_681_229,
    "low": 361_681_229,
    "unconstrained": 619_814_800,  # without any head
    "pixel": 619_825_177,
    "latent": 620_206_532,
    "lambda_0.005": 620_216_909,
    "lambda_0.5": 620_216_909,
    "unconditional": 620_216_909,
}


@functools.cache
def shapes(name, config):
    options = {"with_constraint_heads": True} if name == "controlnet" else {}
    network = networks.abstract(networks.NETWORKS[name], config, **options)
    return {f"{name}.{path}": param.shape for path, param in parameters(network).items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_number_of_trained_parameters(variant):
    config = load_config(f"configs/ablations.py:{variant}")
    unet, controlnet = config.networks.unet, config.networks.controlnet
    found = shapes("unet", unet) | shapes("controlnet", controlnet)
    trained = sum(math.prod(found[path]) for path in select(found, config.trained))
    assert trained == CONTROLNET[variant] + (248_234_560 if unet.conditional_attention else 0)


def test_each_variant_differs_from_the_paper_in_one_thing():
    paper = load_config("configs/xpsr.py")
    assert load_config("configs/ablations.py") == paper
    for variant in VARIANTS[1:]:
        config = load_config(f"configs/ablations.py:{variant}")
        back = dataclasses.replace(
            config, name=paper.name, networks=paper.networks, loss=paper.loss, trained=paper.trained
        )
        assert back == paper and config != paper and config.name == f"xpsr_{variant}"
