"""Parts of the page that need no browser."""

import dataclasses
import os

import gradio as gr
import jax
import numpy as np
import pytest
from PIL import Image

from tests.compilations import compilations
from tests.inference.tiny_model import SAMPLING, tiny_model
from xpsr_jax.app import studio
from xpsr_jax.app.fields import settings_fields
from xpsr_jax.app.many import free_path, zip_files
from xpsr_jax.app.studio import Settings, Studio
from xpsr_jax.cli.app import main
from xpsr_jax.data.captions import Caption
from xpsr_jax.inference.settings import choose_sampling
from xpsr_jax.models.first_stage_config import RRDBNetConfig
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.weights.networks import Keys


def test_compiled_programs_are_kept_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "MAX_SIZES", 1)
    at_work = Studio(tiny_model(), max_pixels=10_000)

    def restore(width: int, **given) -> list[str]:
        source, output = tmp_path / f"{width}.png", tmp_path / "out.png"
        Image.fromarray(np.zeros((8, width, 3), np.uint8)).save(source)
        settings = Settings(choose_sampling(SAMPLING, None, **given), seed=len(given), format="png")
        steps = []
        with compilations() as compiled:
            at_work.restore_file(source, output, Caption(), settings, on_steps=lambda *done: steps.append(done))
        assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1] and output.exists()
        return [name for name in compiled if name in ("prepare_texts", "prepare_pictures", "run_steps", "finish")]

    assert len(restore(8)) == 4
    assert restore(8, steps=7) == restore(8, strength=0.5, steps=3) == restore(8, guidance_scale=3.0) == []
    assert len(restore(12)) == 4 and restore(12) == []
    assert len(restore(8)) == 4, "they were removed when the second size was restored"


def test_with_0_steps_the_result_is_the_first_stages(tmp_path):
    network = RRDBNet(RRDBNetConfig(features=2, blocks=1, growth=2), rngs=Keys(jax.random.key(0)))
    model = dataclasses.replace(tiny_model(), first_stage=network)
    for each, least in ((tiny_model(), 1), (model, 0)):
        with gr.Blocks():
            fields = settings_fields(SAMPLING, least_steps=Studio(each, max_pixels=10_000).least_steps)
        (slider,) = (field for field in fields if field.label == "Steps")
        assert slider.minimum == least and slider.step == 1
    source, output, steps = tmp_path / "a.png", tmp_path / "out.png", []
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(source)
    settings = Settings(choose_sampling(SAMPLING, None, steps=0), seed=0, format="png")
    Studio(model, max_pixels=10_000).restore_file(
        source, output, Caption(), settings, on_steps=lambda *done: steps.append(done)
    )
    assert Image.open(output).size == (48, 32) and all(0 <= done <= total for done, total in steps)


def test_results_with_the_same_name_get_numbers(tmp_path):
    names, taken = [], set()
    for content in (b"0", b"1", b"2"):
        path = free_path(tmp_path / "a.png", taken)
        path.write_bytes(content)
        names.append(path.name)
    assert names == ["a.png", "a_2.png", "a_3.png"]
    archive = zip_files([tmp_path / name for name in names])
    assert archive.parent == tmp_path and archive.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--max-queue", "0"], "--max-queue must be above 0, not 0"),
        (
            ["--host", "192.0.2.1"],
            "cannot listen on 192.0.2.1, port 7860: Cannot assign requested address; try",
        ),
        (["--port", "70000"], "cannot listen on 127.0.0.1, port 70000"),
        (["--max-sessions", "0"], "--max-sessions must be above 0, not 0"),
        (["--auth", "nowhere"], "nowhere cannot be read: No such file or directory"),
        (["--root-path", "xpsr"], "--root-path: xpsr is neither a path such as /xpsr nor a URL"),
        (["--allowed-hosts", "https://a.b"], "--allowed-hosts: https://a.b is not a host name"),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, argv, message):
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
