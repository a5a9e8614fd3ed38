"""sample.py in several processes, and large pictures: the shipped model with real photographs."""

import dataclasses
import json
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import xpsr_jax
from tests.compilations import compilations
from tests.inference.seams import seam
from tests.inference.tiny_model import SAMPLING, tiny_model
from tests.marks import marked_long
from tests.models.golden import VECTORS
from tests.soak import runs
from xpsr_jax.data.captions import Caption
from xpsr_jax.images.reading import read_image
from xpsr_jax.inference.restore import Restorer
from xpsr_jax.weights.model_folder import save

IMAGES = 5
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model and photographs. One photograph is restored in tiles."""
    folder = tmp_path_factory.mktemp("sampling")
    save(tiny_model(), folder / "model")
    (folder / "lr").mkdir()
    for i in range(IMAGES):
        shape = (8, 24, 3) if i == 3 else (8, 8, 3)
        Image.fromarray(RNG.integers(0, 256, shape, np.uint8)).save(folder / "lr" / f"{i}.png")
    return folder


def command(folders, output, *more):
    words = [sys.executable, "sample.py", folders / "lr", "--output", output, "--model", folders / "model"]
    options = ["--missing-captions", "empty", "--tile", "8", "--tile-overlap", "2"]
    return [str(word) for word in [*words, *options, *more]]


@pytest.fixture(scope="module")
def alone(folders):
    """The results of one process with one device."""
    output = folders / "alone"
    (out,) = runs.ended_well(runs.start(command(folders, output)))
    assert f"{IMAGES} of {IMAGES} images restored" in out
    return pictures(output)


def pictures(output):
    return {file.name: read_image(file) for file in sorted(output.glob("*.png"))}


def manifest(output):
    return [json.loads(line) for line in (output / "restored.jsonl").read_text().splitlines()]


def differ(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(int(np.abs(np.int32(ours[name]) - theirs[name]).max()) for name in theirs)


@pytest.mark.parametrize("meet", marked_long(["as SLURM", "told"], ["as SLURM"]))
def test_two_processes_share_the_images(folders, alone, tmp_path, meet):
    """Each process has two devices. With flags, the command runs again when nothing is left to do."""
    texts = ["3 of 3 images restored", "3 of 3 images are already restored."]
    for text in texts if meet == "told" else texts[:1]:
        words = command(folders, tmp_path)
        if meet == "told":
            told = [[*words, "--processes", "2", "--process", str(i)] for i in range(2)]
            job = runs.Job([process for each in told for process in runs.start(each, devices=2).processes])
        else:
            job = runs.start(words, processes=2, devices=2, slurm=meet == "as SLURM")
        first, second = runs.ended_well(job)
        assert "process 0 of 2, with 3 of the images." in first and "process 1 of 2, with 2" in second
        assert text in first
    assert differ(pictures(tmp_path), alone) <= 1
    assert sorted(line["output"] for line in manifest(tmp_path)) == sorted(alone)


def test_a_killed_process_does_not_stop_the_other_and_its_share_is_done_later(folders, alone, tmp_path):
    words = command(folders, tmp_path)
    job = runs.start(words, processes=2)
    while not (tmp_path / "restored.jsonl").exists():
        time.sleep(0.01)
    job.processes[0].send_signal(signal.SIGKILL)
    (killed, _), (code, out) = job.wait()
    assert killed == -signal.SIGKILL and code == 0 and "2 of 2 images restored" in out
    assert len(pictures(tmp_path)) < IMAGES
    (out,) = runs.ended_well(runs.start(words))  # resumed by one process
    assert "images are already restored." in out
    assert differ(pictures(tmp_path), alone) <= 1


def test_a_failure_affects_only_its_own_process(folders, tmp_path):
    (folders / "lr" / "2.png").rename(folders / "kept.png")
    try:
        (folders / "lr" / "2.png").write_text("no image")
        ends = runs.start(command(folders, tmp_path, "--on-error", "skip"), processes=2).wait()
    finally:
        (folders / "kept.png").replace(folders / "lr" / "2.png")
    assert [code for code, _ in ends] == [1, 0], ends
    assert "2.png: not an image" in ends[0][1] and "2 of 3 images restored" in ends[0][1]


def test_twelve_odd_sizes_need_few_programs():
    model = tiny_model()
    restorer = Restorer(model, dataclasses.replace(SAMPLING, tile_size=32, tile_overlap=8, vae_tile_size=32))
    sides = zip(range(21, 69, 4), range(70, 22, -4), strict=True)
    images = [RNG.integers(0, 256, (height, width, 3), np.uint8) for height, width in sides]
    assert len({image.shape for image in images}) == 12
    jax.clear_caches()  # earlier tests in the same process may have compiled some of these programs
    with compilations() as compiled:
        for image in images:
            assert restorer([image], [Caption("", "")])[0].shape == (4 * image.shape[0], 4 * image.shape[1], 3)
    # Compiling each of these takes long. The other programs are very small.
    counts = {name: compiled.count(name) for name in ("prepare_texts", "predict_tiles", "run_autoencoder")}
    print(counts, len(compiled))
    assert counts == {"prepare_texts": 1, "predict_tiles": 2, "run_autoencoder": 4}


@pytest.mark.long
def test_no_seam_on_photographs():
    """The shipped model with four tiles at 224 x 224, compared with the same model without tiles.

    Two photographs and both axes are compared. Without noise the two pictures differ by 0.6 grey levels.
    """
    assets = Path(xpsr_jax.__file__).parent / "assets"
    model = xpsr_jax.load(assets / "tiny", first_stage="none")
    caption = Caption("", "The image is blurry.")
    factor = model.autoencoder.factor
    assert factor == 2
    # Of 112 cells, tiles of 64 begin at 0 and 48, and the autoencoder's tiles of 72 at 0 and 40. Both meet at 56.
    ways = ({"tile_size": 0, "vae_tile_size": 0}, {"tile_size": 64, "tile_overlap": 16, "vae_tile_size": 72})
    restorers = [Restorer(model, dataclasses.replace(model.defaults, **way)) for way in ways]
    seams = []
    for photo in (VECTORS / "photos" / "leuven.jpg", assets / "demo" / "original.png"):
        with Image.open(photo) as image:
            lr = np.asarray(image.convert("RGB").resize((56, 56), Image.Resampling.BICUBIC))
        whole, tiled = (restorer([lr], [caption])[0] for restorer in restorers)
        print(photo.name, "root mean square", np.sqrt(np.mean((np.float64(tiled) - whole) ** 2)))
        seams += [seam(tiled, whole, axis=axis, meeting=factor * 56, fade=16) for axis in (0, 1)]
    print("gradient where tiles meet and near it, relative to other places:", np.round(seams, 3).tolist())
    at, near = np.mean(seams, axis=0)
    print("mean:", at, near)
    assert 0.99 < near < 1.01  # measured 1.0005
    assert 0.99 < at < 1.01  # measured 1.0009


@pytest.mark.long
def test_eight_devices_and_any_batch(folders):
    """A result is within a grey level in any order, in any batch and on any number of devices."""
    model = tiny_model()
    images = [RNG.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(10)]
    captions = [Caption(str(i), "blurry") for i in range(10)]
    sampling = dataclasses.replace(SAMPLING, steps=4)
    expected = [
        Restorer(model, sampling)([image], [caption])[0] for image, caption in zip(images, captions, strict=True)
    ]
    for batch_size, devices in ((1, 8), (3, 1), (2, 4)):
        mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
        restorer = Restorer(model, sampling, batch_size=batch_size, mesh=mesh)
        for order in (range(10), range(9, -1, -1)):
            ours = {}
            for first in range(0, 10, restorer.capacity):
                batch = list(order)[first : first + restorer.capacity]
                ours |= dict(
                    zip(batch, restorer([images[i] for i in batch], [captions[i] for i in batch]), strict=True)
                )
            most = max(int(np.abs(np.int32(ours[i]) - expected[i]).max()) for i in range(10))
            parts = np.mean([np.mean(ours[i] != expected[i]) for i in range(10)])
            print(f"batch {batch_size}, devices {devices}: largest difference {most}, of {parts:.1e} of the values")
            assert most <= 1
