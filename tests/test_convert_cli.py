"""convert_weights.py: its output files, its messages and its errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.weights.conftest import base, released  # noqa: F401
from xpsr_jax.cli.convert import Arguments
from xpsr_jax.cli.convert import convert_weights as main
from xpsr_jax.errors import UserError
from xpsr_jax.weights.model_folder import load
from xpsr_jax.weights.tensors import WeightsError

ROOT = Path(__file__).parents[1]
MODEL = "diffusion_pytorch_model.safetensors"


def test_sources_are_merged_bit_for_bit_into_a_complete_model(base, released, tmp_path, capsys):  # noqa: F811
    main(Arguments((base, released), tmp_path / "out"))
    printed = capsys.readouterr().out
    assert f"unet/          from {released}/unet\n" in printed and f"vae/           from {base}/vae\n" in printed
    for source in (base, released):
        for file in source.rglob("*.safetensors"):
            before, after = load_file(file), load_file(tmp_path / "out" / file.relative_to(source))
            assert before.keys() == after.keys()
            assert all(before[key].tobytes() == after[key].tobytes() for key in before)
            assert all(before[key].dtype == after[key].dtype for key in before)
        for file in source.rglob("config.json"):
            assert file.read_bytes() == (tmp_path / "out" / file.relative_to(source)).read_bytes()
    assert load(tmp_path / "out").controlnet.config.cross_attention_dim == 24


def test_types_shards_and_missing_components(released, tmp_path, capsys):  # noqa: F811
    main(Arguments((released,), tmp_path / "out", dtype="bfloat16", shard_gb=0.001))
    assert "the model still needs vae/, text_encoder/, tokenizer/, scheduler/" in capsys.readouterr().out
    index = json.loads((tmp_path / "out" / "unet" / f"{MODEL}.index.json").read_text())
    before = load_file(released / "unet" / MODEL)
    assert index["weight_map"].keys() == before.keys() and len(set(index["weight_map"].values())) == 2
    for key, name in index["weight_map"].items():
        after = load_file(tmp_path / "out" / "unet" / name)[key]
        assert after.tobytes() == before[key].astype(ml_dtypes.bfloat16).tobytes()


def test_stable_diffusion_s_own_unet_converts(released, tmp_path):  # noqa: F811
    source = tmp_path / "sd"
    shutil.copytree(released / "unet", source / "unet")
    stock = {key: array for key, array in load_file(source / "unet" / MODEL).items() if "pixel" not in key}
    save_file(stock, source / "unet" / MODEL)
    main(Arguments((source,), tmp_path / "out"))
    assert load_file(tmp_path / "out" / "unet" / MODEL).keys() == stock.keys()


def test_a_variant_that_only_some_components_have(released, tmp_path, capsys):  # noqa: F811
    shutil.copytree(released, tmp_path / "source")
    half = {key: array.astype("float16") for key, array in load_file(released / "unet" / MODEL).items()}
    save_file(half, tmp_path / "source" / "unet" / MODEL.replace(".s", ".fp16.s"))
    main(Arguments((tmp_path / "source",), tmp_path / "out", variant="fp16"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"unet/          from {tmp_path}/source/unet"
    assert lines[1] == f"controlnet/    from {tmp_path}/source/controlnet (it has no fp16 files)"
    types = {
        n: {str(a.dtype) for a in load_file(tmp_path / "out" / n / MODEL).values()} for n in ("unet", "controlnet")
    }
    assert types == {"unet": {"float16"}, "controlnet": {"float32"}}


def test_wrong_sources_and_options_are_refused(released, tmp_path):  # noqa: F811
    def refused(sources, match, output=tmp_path / "out", **options):
        with pytest.raises(UserError, match=match):
            main(Arguments(tuple(sources), output, **options))
        assert not (tmp_path / "out").exists()

    refused([], "name at least one folder or file")
    refused([tmp_path / "model.ckpt"], r"model\.ckpt does not exist; expected a model folder .* or a single file")
    refused([tmp_path / "nowhere"], "nowhere does not exist")
    refused([tmp_path], "holds no part of a model: expected some of the subfolders unet/, controlnet/")
    refused([released], "would replace the source", output=released.parent, overwrite=True)
    refused([released], "would replace the source", output=released, overwrite=True)
    refused([released], "no weights have the variant fp16; variants found: none", variant="fp16")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "unet").mkdir()
    refused([released], "taken already exists", output=tmp_path / "taken")
    (tmp_path / "flax" / "unet").mkdir(parents=True)
    (tmp_path / "flax" / "unet" / "diffusion_flax_model.msgpack").touch()
    refused([tmp_path / "flax"], r"msgpack \(0 bytes\) is truncated")


def test_wrong_weights_leave_no_output(released, tmp_path):  # noqa: F811
    source = tmp_path / "source"
    shutil.copytree(released, source)
    tensors = load_file(source / "controlnet" / MODEL)
    tensors["conv_degradation_mid.0.bias"][0] = np.inf
    save_file(tensors, source / "controlnet" / MODEL)
    with pytest.raises(WeightsError, match=r"NaN or infinity: in conv_degradation_mid\.0\.bias"):
        main(Arguments((source,), tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_command_fails_with_one_line(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "convert_weights.py"),
        str(tmp_path / "no"),
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path}/no does not exist; expected a model folder")
    assert done.stderr.count("\n") == 1
