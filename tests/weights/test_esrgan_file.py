"""ESRGAN networks in one file: every naming is read, and incomplete networks are an error."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.weights.esrgan_files import NAMINGS, tensors_of, write
from xpsr_jax.errors import UserError
from xpsr_jax.weights.convert import convert
from xpsr_jax.weights.sources import open_source


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_converted_to_basicsr_names(naming, tmp_path):
    tensors = tensors_of("x4")
    done = convert([open_source(write(tensors, naming, tmp_path))], tmp_path / "out", verify=naming == "first")
    assert list(done.sources) == ["first_stage"] and "first_stage" not in done.missing
    written = load_file(tmp_path / "out" / "first_stage" / "diffusion_pytorch_model.safetensors")
    expected = load_file(write(tensors, "basicsr", tmp_path))
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[key], expected[key]) for key in expected)
    again = convert([open_source(tmp_path / "out" / "first_stage")], tmp_path / "again")
    assert again.parameters == done.parameters


def test_incomplete_networks_are_refused(tmp_path):
    tensors = tensors_of("x4")
    file = write(tensors, "basicsr", tmp_path)
    whole = load_file(file)

    def refused(tensors: dict[str, np.ndarray]) -> str:
        save_file(tensors, file)
        with pytest.raises(UserError) as found:
            convert([open_source(file)], tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(found.value)

    assert "missing: conv_hr.bias" in refused({k: v for k, v in whole.items() if k != "conv_hr.bias"})
    assert "unknown: extra.weight" in refused(whole | {"extra.weight": np.zeros((1,), np.float16)})
    assert "has 5 input channels" in refused(whole | {"conv_first.weight": np.zeros((4, 5, 3, 3), np.float16)})
    assert "NaN or infinity" in refused(whole | {"conv_hr.bias": np.full(4, np.nan, np.float16)})
