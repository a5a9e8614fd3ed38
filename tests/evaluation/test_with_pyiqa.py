"""The adapter to pyiqa, with a fake that has the same interface: names, ranges, batches, and the error without pyiqa.

The fake behaves like pyiqa 0.1.16. It has `create_metric(name)`. A metric takes RGB tensors (b, 3, h, w) in [0, 1] and
returns (b, 1) or (b,). FID's network is `metric.net.model(batch, resize, normalise)`, which returns a list of feature
maps.
"""

import importlib.metadata
import json
import sys
import types

import numpy as np
import pytest

from xpsr_jax.cli import evaluate
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.frechet import FeatureStatistics, frechet_distance
from xpsr_jax.evaluation.with_pyiqa import PYIQA_NAMES, InceptionFeatures, NoReferenceMetric
from xpsr_jax.images.writing import write_png


class Tensor(np.ndarray):
    """An array with the few tensor methods that the adapter calls."""

    def permute(self, *axes):
        return self.transpose(axes)

    def float(self):
        return self.astype(np.float32)

    def to(self, device):
        return self

    def flatten(self, start):  # type: ignore[override]
        return self.reshape(*self.shape[:start], -1)

    def cpu(self):
        return self

    def numpy(self):
        return np.asarray(self)


class NoGradient:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


@pytest.fixture
def pyiqa(monkeypatch):
    """A fake pyiqa. Its metrics record their inputs. `broken` is the name of a metric whose weights are missing."""
    module = types.ModuleType("pyiqa")
    module.calls, module.seeds, module.broken = [], [], None  # type: ignore[attr-defined]

    def create_metric(name):
        if name == module.broken:
            raise RuntimeError("<urlopen error\n[Errno -2] Name or service not known>")

        def metric(batch):
            module.calls.append((name, batch.shape, float(batch.min()), float(batch.max())))
            return batch.mean(axis=(1, 2, 3), keepdims=False)[:, None].view(Tensor)

        def model(batch, resize, normalise):
            assert batch.shape[1:] == (3, 299, 299) and batch.dtype == np.float32 and not resize and not normalise
            assert batch.min() >= -1 and batch.max() <= 1
            return [batch[:, :, :40:20, :20:10].reshape(len(batch), -1, 1, 1)]

        if name == "fid":
            return types.SimpleNamespace(net=types.SimpleNamespace(model=model), device="cpu")
        return metric

    module.create_metric = create_metric  # type: ignore[attr-defined]
    torch = types.ModuleType("torch")
    torch.from_numpy = lambda array: array.view(Tensor)  # type: ignore[attr-defined]
    torch.no_grad = NoGradient  # type: ignore[attr-defined]
    torch.device = object()  # type: ignore[attr-defined]  # tyro looks for it
    torch.manual_seed = module.seeds.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    monkeypatch.setitem(sys.modules, "torch", torch)
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0" if name in ("pyiqa", "torch") else version(name)
    )
    return module


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 100, 110, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", [name for name in PYIQA_NAMES if name != "fid"])
def test_images_are_passed_as_rgb_tensors_in_0_to_1(pyiqa, images, name):
    scores = NoReferenceMetric(name)(images)
    np.testing.assert_allclose(scores, images.mean(axis=(1, 2, 3)) / 255, rtol=1e-5)
    for called, shape, least, most in pyiqa.calls:
        assert called == name.replace("_", "-")
        assert shape[1:] == (3, 100, 110)
        assert (least, most) == (0, 1)
    # MANIQA chooses random positions in an image. So each image is passed alone, with the same seed.
    assert [shape[0] for _, shape, *_ in pyiqa.calls] == ([1, 1, 1] if name.startswith("maniqa") else [3])
    assert len(set(pyiqa.seeds)) == 1


def test_inception_features_of_images_of_any_size(pyiqa, images, monkeypatch):
    monkeypatch.setattr(InceptionFeatures, "width", 3 * 2 * 2)  # the width of the fake's features
    features = InceptionFeatures()
    together = features([images[0], images[1, :50]])
    assert together.shape == (2, 3 * 2 * 2)
    np.testing.assert_allclose(together[1:], features([images[1, :50]]))


def test_the_command_with_all_metrics(pyiqa, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(InceptionFeatures, "width", 3 * 2 * 2)
    rng = np.random.default_rng(1)
    for i, image in enumerate(images):
        write_png(tmp_path / "HR" / f"{i}.png", image)
        noisy = np.clip(image + rng.normal(scale=30, size=image.shape), 0, 255).astype(np.uint8)
        write_png(tmp_path / "out" / f"{i}.png", noisy)
    file = tmp_path / "s.json"
    arguments = ["--restored", str(tmp_path / "out"), "--reference", str(tmp_path), "--json", str(file)]
    arguments += ["--protocol", "seesr", "--batch-size", "2", "--output", str(tmp_path / "report")]
    assert evaluate.main([*arguments, "--metrics", "psnr", "fid", "niqe", "maniqa_pipal"]) == 0
    scores = json.loads(file.read_text())
    assert list(scores["mean"]) == ["psnr", "niqe", "maniqa_pipal", "fid"]
    assert set(scores["images"]["0.png"]) == {"psnr", "niqe", "maniqa_pipal"}
    # The merged statistics of the batches equal those of all images.
    from xpsr_jax.images.reading import read_image

    statistics = [
        FeatureStatistics.of(InceptionFeatures()([read_image(tmp_path / folder / f"{i}.png") for i in range(3)]))
        for folder in ("out", "HR")
    ]
    assert scores["mean"]["fid"] == pytest.approx(frechet_distance(*statistics), rel=1e-6)
    assert "MANIQA (PIPAL)" in capsys.readouterr().out.replace("\n", " ")


def test_missing_weights_are_one_error(pyiqa):
    pyiqa.broken = "clipiqa"
    with pytest.raises(
        UserError, match=r"pyiqa could not make its metric 'clipiqa': <urlopen error \[Errno -2\].*leave"
    ):
        NoReferenceMetric("clipiqa")


def test_without_pyiqa_the_error_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    arguments = ["--restored", str(tmp_path), "--reference", str(tmp_path), "--metrics", "all"]
    assert evaluate.main(arguments) == 1
    said = capsys.readouterr().err
    assert "pip install 'xpsr-jax[iqa]'" in said
    assert "non-commercial" in said
