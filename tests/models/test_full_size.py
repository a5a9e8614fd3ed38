"""The released networks at full size, as shapes only: nothing is allocated (method §5)."""

import json
import math

import pytest

from xpsr_jax.models.configs import ControlNetConfig, UNetConfig
from xpsr_jax.models.parameters import parameters
from xpsr_jax.weights import rules
from xpsr_jax.weights.networks import CONTROLNET, UNET, abstract


@pytest.fixture(scope="module")
def shapes(vectors):
    """For both networks: PyTorch's shapes by PyTorch's keys, made from our parameters' paths and shapes."""

    def of(network, config, **options):
        text = json.loads((vectors / f"{network.subfolder}_config_full.json").read_text())
        module = abstract(network, config.from_json(text), **options)
        return {
            rules.torch_key(path, network.names): list(rules.torch_shape(path, variable.shape))
            for path, variable in parameters(module).items()
        }

    return {"unet": of(UNET, UNetConfig), "controlnet": of(CONTROLNET, ControlNetConfig, with_constraint_heads=True)}


@pytest.mark.parametrize("name", ["unet", "controlnet"])
def test_exactly_the_released_keys_and_shapes(name, shapes, vectors):
    assert shapes[name] == json.loads((vectors / "keys_full.json").read_text())[name]


def test_parameter_counts(shapes):
    counts = {name: {key: math.prod(shape) for key, shape in of.items()} for name, of in shapes.items()}
    conditional_attention = sum(count for key, count in counts["unet"].items() if ".pixel_attentions." in key)
    assert sum(counts["unet"].values()) == 1_107_755_524
    assert sum(counts["controlnet"].values()) == 620_216_909
    assert conditional_attention + sum(counts["controlnet"].values()) == 868_451_469


def test_sampling_builds_no_constraint_heads():
    module = abstract(CONTROLNET, ControlNetConfig())
    assert not [path for path in parameters(module) if "conv_degradation" in path or "to_rgbs" in path]


def test_configs_survive_a_round_trip(vectors):
    for name, config in (("unet", UNetConfig), ("controlnet", ControlNetConfig)):
        released = json.loads((vectors / f"{name}_config_full.json").read_text())
        ours = config.from_json(released)
        written = ours.to_json()
        assert config.from_json(json.loads(json.dumps(written))) == ours
        # All keys that the released code reads are unchanged. "_diffusers_version" only says who wrote the file.
        assert {key: written[key] for key in released if key != "_diffusers_version"} == {
            key: value for key, value in released.items() if key != "_diffusers_version"
        }
