"""The log of a run: in Weights & Biases, as a plot, and read again."""

import sys
import types

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from xpsr_jax.errors import UserError
from xpsr_jax.training.log import Log, check_wandb, read_metrics
from xpsr_jax.training.plot import plot_metrics

SAMPLES = np.array([0])


def test_weights_and_biases(tmp_path, monkeypatch):
    calls = []
    online = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finished")
    )
    module = types.ModuleType("wandb")
    module.init = lambda **options: calls.append(options) or online
    module.Image = lambda picture: picture.shape
    monkeypatch.setitem(sys.modules, "wandb", module)
    with Log(tmp_path, first=0, steps=2, batch_size=4, wandb="xpsr", record={"seed": 3}) as log:
        log.add(1, {"loss": jnp.float32(2), "gradient_norm": jnp.float32(1)}, SAMPLES)
        log.scalars(1)
        log.validation(1, {"validation_0": np.zeros((2, 6, 3), np.uint8)}, {"validation_psnr": 20.0})
    assert calls == [
        {
            "project": "xpsr",
            "id": tmp_path.name,
            "name": tmp_path.name,
            "resume": "allow",
            "dir": str(tmp_path),
            "config": {"seed": 3},
        },
        (1, {"loss": 2.0, "gradient_norm": 1.0}),
        (1, {"validation_0": (2, 6, 3)}),
        (1, {"validation_psnr": 20.0}),
        "finished",
    ]


def test_weights_and_biases_is_not_installed(monkeypatch):
    check_wandb(None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--wandb xpsr needs Weights & Biases: pip install wandb"):
        check_wandb("xpsr")


def test_losses_are_drawn(tmp_path):
    lines = [f'{{"step": {i}, "loss": {1 / i}, "mse": {-i}, "images_per_second": 3.0}}\n' for i in range(1, 30)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "losses.png")
    picture = cv2.imread(str(tmp_path / "losses.png"))
    assert picture.shape[1] == 2 * 4 * 120 and picture.std() > 10  # two panels
    (tmp_path / "metrics.jsonl").write_text("")
    plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_learning_rate_and_scores_are_drawn_too(tmp_path):
    """Even if the log has no such values at its beginning."""
    lines = [f'{{"step": {i}, "loss": {1 / i}, "gradient_norm": 1.0}}\n' for i in range(1, 10)]
    lines += [f'{{"step": {i}, "loss": {1 / i}, "learning_rate": 1e-5}}\n' for i in range(10, 20)]
    lines += ['{"step": 15, "validation_psnr": 21.5, "validation_lpips": 0.5}\n']
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "losses.png")
    assert cv2.imread(str(tmp_path / "losses.png")).shape[1] == 4 * 4 * 120  # four panels


def test_a_missing_validation_of_an_earlier_run_is_found(tmp_path):
    with Log(tmp_path, first=0, steps=4, batch_size=4) as log:
        log.validation(2, {}, {"validation_psnr": 20.0})
    for first, lacks in ((2, False), (4, True)):
        with Log(tmp_path, first=first, steps=4, batch_size=4) as log:
            assert log.lacks_validation(first) == lacks
    with Log(tmp_path, first=1, steps=4, batch_size=4) as log:  # resumes from an earlier step
        assert log.lacks_validation(2)


def test_an_earlier_log_is_read_up_to_a_step(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "validation_psnr": 20.0}\n{"step": 3, "loss": 1}\n{"st')
    assert [line["step"] for line in read_metrics(file)] == [1, 2, 3]
    assert list(read_metrics(file, until=2))[1:] == [{"step": 2, "validation_psnr": 20.0}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2 is not valid JSON"),
        ('{"loss": 1.0}', "line 2 is not a line of a training log: it has no step"),
        ("[2]", "line 2 is not a line of a training log"),
        ('{"step": 2, "loss": "1"}', "line 2: loss must be a number, not 1"),
        ('{"step": ' + "9" * 5000 + "}", "line 2 is not valid JSON: a number of 5000 digits"),
        ("[" * 100_000, "line 2 is not valid JSON: it is nested too deeply"),
    ],
)
def test_a_wrong_line_of_a_log_is_named_with_its_number(line, problem, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1, "loss": 2.0}}\n{line}\n')
    with pytest.raises(UserError, match=problem) as caught:
        plot_metrics(file, tmp_path / "losses.png")
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=problem), Log(tmp_path, first=2, steps=3, batch_size=1):
        pass
