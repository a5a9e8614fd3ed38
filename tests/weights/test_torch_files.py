"""safetensors files: the library's bytes, every type, shards, and a clear error for every kind of damage."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from xpsr_jax.errors import UserError
from xpsr_jax.weights.folders import read_folder
from xpsr_jax.weights.tensors import Tensor, WeightsError
from xpsr_jax.weights.torch_files import read_file, write_file, write_folder


def lazy(arrays):
    return {key: Tensor.of(key, array) for key, array in arrays.items()}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "b.weight": rng.standard_normal((7, 5), dtype=np.float32),
        "a.weight": rng.standard_normal((3, 2, 3, 3)).astype(np.float16),
        "a.bias": rng.standard_normal(3).astype(ml_dtypes.bfloat16),
        "é.bias": rng.standard_normal(1, dtype=np.float32),
    }


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_bytes_equal_the_library_s(tmp_path):
    data = arrays()
    write_file(lazy(data), tmp_path / "ours.safetensors", where="test")
    safetensors.numpy.save_file(data, tmp_path / "library.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "library.safetensors").read_bytes()


def test_reads_every_type_without_touching_the_data_first(tmp_path):
    data = arrays()
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(data, file)
    read = read_folder(tmp_path)
    assert {key: (t.shape, t.dtype) for key, t in read.items()} == {k: (a.shape, a.dtype) for k, a in data.items()}
    assert all(same_bits(read[key].read(), array) for key, array in data.items())
    file.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: No such file"):
        read["b.weight"].read()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_casts_as_numpy_does(dtype, tmp_path):
    dtype = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    data = {"w": np.random.default_rng(2).standard_normal((130, 70)).astype(np.float64)}
    write_file(lazy(data), tmp_path / "f.safetensors", where="test", dtype=dtype)
    assert same_bits(read_file(tmp_path / "f.safetensors")["w"].read(), data["w"].astype(dtype))
    # A transposed tensor is copied in blocks of columns. Its values are the same.
    transposed = {"w": Tensor.of("w", data["w"]).transpose((1, 0))}
    write_file(transposed, tmp_path / "t.safetensors", where="test", dtype=dtype)
    assert same_bits(read_file(tmp_path / "t.safetensors")["w"].read(), data["w"].T.astype(dtype))


def test_shards_and_their_index(tmp_path):
    data = {f"layer.{i:02d}": np.full((10, 10), i, np.float32) for i in range(7)}
    write_folder(lazy(data), tmp_path, "diffusion_pytorch_model", where="test", shard_bytes=1000)
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2800}
    assert index["weight_map"]["layer.06"] == "diffusion_pytorch_model-00004-of-00004.safetensors"
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == sorted(set(index["weight_map"].values()))
    for name in set(index["weight_map"].values()):
        with safe_open(tmp_path / name, framework="np") as shard:
            assert shard.metadata() == {"format": "pt"}
    read = read_folder(tmp_path)
    assert read.keys() == data.keys()
    assert all(same_bits(read[key].read(), array) for key, array in data.items())

    (tmp_path / "diffusion_pytorch_model-00002-of-00004.safetensors").unlink()
    with pytest.raises(UserError, match="files that do not exist: diffusion_pytorch_model-00002-of-00004"):
        read_folder(tmp_path)


def test_wrong_indexes_are_refused(tmp_path):
    write_file(lazy({"a": np.zeros(1, np.float32)}), tmp_path / "x.safetensors", where="test")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}))
    with pytest.raises(UserError, match=r"tensors that are missing: b in x\.safetensors"):
        read_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(UserError, match="outside its folder"):
        read_folder(tmp_path)
    index.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_folder(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_files_are_refused(keep, tmp_path):
    file = tmp_path / "model.safetensors"
    write_file(lazy(arrays()), file, where="test")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        UserError, match=r"model\.safetensors \([\d,]+ bytes\) is truncated, corrupt or not a \.safetensors"
    ):
        read_folder(tmp_path)


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="Git LFS pointer"):
        read_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no weights: expected .*, found nothing"):
        read_folder(tmp_path)


def test_malicious_pickles_are_refused_without_running_them(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (tmp_path.joinpath("executed").write_text, ("x",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        read_folder(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_nan_and_overflow_are_named_together_and_leave_no_file(tmp_path):
    data = arrays() | {"n": np.array([1, np.nan], np.float32), "i": np.array([np.inf], ml_dtypes.bfloat16)}
    with pytest.raises(WeightsError) as error:
        write_file(lazy(data), tmp_path / "f.safetensors", where="here")
    assert set(error.value.problems) == {"NaN or infinity: in n (2,)", "NaN or infinity: in i (1,)"}
    large = arrays() | {"w": np.array([1, -70000.0], np.float32), "v": np.array([2.0**100], ml_dtypes.bfloat16)}
    with pytest.raises(WeightsError) as error:
        write_file(lazy(large), tmp_path / "f.safetensors", where="here", dtype=np.float16)
    assert error.value.problems[0] == "too large for float16: v reaches 1.26765e+30"
    assert error.value.problems[1] == "too large for float16: w reaches 70000"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "model.safetensors"
    write_file(lazy({"a": np.ones(4, np.float32)}), file, where="test")
    before = file.read_bytes()

    def interrupted():
        raise KeyboardInterrupt

    tensors = lazy({"a": np.zeros(4, np.float32)}) | {"b": Tensor("b", (4,), np.dtype(np.float32), interrupted)}
    with pytest.raises(KeyboardInterrupt):
        write_file(tensors, file, where="test")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert file.read_bytes() == before


def test_unsupported_types_are_named(tmp_path):
    safetensors.numpy.save_file({"w": np.zeros(2, np.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"unsupported types: w \(C64\)"):
        read_folder(tmp_path)
