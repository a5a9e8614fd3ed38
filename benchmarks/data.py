"""Training pairs per second on one core: this package's degradation, and the same operators composed from kornia.

python -m pip install torch==2.13.0 kornia     # the CPU build of torch is sufficient
python -m benchmarks.data --photos PHOTOS

Both make the same pairs. For each pair the parameters are drawn once (method §9, crops of 512 pixels). Then OpenCV and
numpy apply them here, and kornia and torch apply them there: in turn, on the same core, each with one thread. Time is
CPU time, so other processes on the machine have little effect. Each side draws its own noise fields, and kornia's JPEG
rounds differently. So pairs without noise and JPEG are compared, to show that both sides do the same.

Then whole examples are timed, from the file to the tokens. The last table shows how many cores are needed to make
batches as fast as training steps use them.
"""

import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.command_line import command_line
from xpsr_jax.data import worker_process
from xpsr_jax.data.config import XPSR, DataConfig
from xpsr_jax.data.degradation import Blur, Drawn, Noise, apply, draw
from xpsr_jax.data.examples import make_example, random_crop
from xpsr_jax.data.jpeg import CHROMA_TABLE, LUMA_TABLE
from xpsr_jax.data.kernels import SHARPENING_WINDOW
from xpsr_jax.data.noise import LUMA
from xpsr_jax.data.resize import resize
from xpsr_jax.data.rounding import round_to_uint8
from xpsr_jax.data.sample_sources import open_sample_source
from xpsr_jax.errors import UserError
from xpsr_jax.images.listing import list_images
from xpsr_jax.images.reading import read_image
from xpsr_jax.weights.model_folder import load_tokenizer
from xpsr_jax.weights.sources import SHIPPED_TOKENIZER

BATCHES = (32, 64, 128, 256)
SECONDS = (0.25, 0.5, 1.0, 2.0)
# The standard deviation that OpenCV gives the sharpening window.
_SHARPENING_SIGMA = 0.3 * ((SHARPENING_WINDOW - 1) / 2 - 1) + 0.8


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        photos: Folder of photographs.
        pairs: Pairs that each side makes, after ten that do not count.
        crop_size: Side of the crops, in pixels.
        seed: Seed of the crops and degradations.
    """

    photos: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    pairs: int = 200
    crop_size: int = 512
    seed: int = 0


class Kornia:
    """The degradation of `xpsr_jax.data.degradation.apply`, with kornia's operators, and torch's if kornia has none."""

    def __init__(self) -> None:
        try:
            import kornia
            import torch
        except ImportError as error:
            raise UserError(f"kornia and PyTorch are needed: pip install torch==2.13.0 kornia ({error})") from error
        self.kornia, self.torch = kornia, torch
        torch.set_num_threads(1)
        self._luma = torch.from_numpy(LUMA)[None, :, None, None]

    def pair(self, crop: np.ndarray, drawn: Drawn, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Makes HR and enlarged LR, 8 bits, from an 8-bit crop."""
        self.torch.manual_seed(int(rng.integers(2**31)))
        with self.torch.inference_mode():
            hr = self.torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
            if drawn.sharpen:
                hr = self.sharpen(hr)
            lr = self.degrade(hr, drawn)
            lr = self.resize(lr, crop.shape[:2], "bicubic")
            hr, lr = ((image[0].permute(1, 2, 0) * 255).round().clamp(0, 255).byte() for image in (hr, lr))
            return hr.numpy(), lr.numpy()

    def degrade(self, hr: Any, drawn: Drawn) -> Any:
        first, second = drawn.first, drawn.second
        height, width = (n // drawn.upscale for n in hr.shape[2:])
        image = self.blur(hr, first.blur)
        if first.scale != 1:
            size = tuple(max(1, int(n * first.scale)) for n in image.shape[2:])
            image = self.resize(image, size, first.resize_mode, scale=first.scale)
        image = self.add_noise(image, first.noise)
        image = self.compress(image, first.jpeg_quality)
        image = self.blur(image, second.blur)
        size = max(1, int(height * second.scale)), max(1, int(width * second.scale))
        image = self.add_noise(self.resize(image, size, second.resize_mode), second.noise)
        if not drawn.jpeg_last:
            image = self.compress(image, second.jpeg_quality)
        image = self.blur(self.resize(image, (height, width), drawn.final_mode), drawn.sinc)
        if drawn.jpeg_last:
            image = self.compress(image, second.jpeg_quality)
        return image.clamp(0, 1)

    def sharpen(self, image: Any) -> Any:
        def blur(x: Any) -> Any:
            window, sigma = (SHARPENING_WINDOW,) * 2, (_SHARPENING_SIGMA,) * 2
            return self.kornia.filters.gaussian_blur2d(x, window, sigma, border_type="reflect")

        detail = image - blur(image)
        mask = blur((detail.abs() * 255 > 10).float())
        return image + mask * ((image + 0.5 * detail).clamp(0, 1) - image)

    def blur(self, image: Any, blur: Blur | None) -> Any:
        if blur is None:
            return image
        kernel = self.torch.from_numpy(blur.kernel().astype(np.float32))[None]
        return self.kornia.filters.filter2d(image, kernel, border_type="reflect")

    def resize(self, image: Any, size: tuple[int, ...], mode: str, *, scale: float | None = None) -> Any:
        if scale is not None and mode != "area":
            # kornia's resize is torch's, but it cannot take a scale that differs from the ratio of the sizes.
            return self.torch.nn.functional.interpolate(image, scale_factor=scale, mode=mode)
        return self.kornia.geometry.transform.resize(image, size, interpolation=mode)

    def add_noise(self, image: Any, noise: Noise | None) -> Any:
        if noise is None:
            return image
        torch = self.torch
        if noise.kind == "gaussian":
            shape = (1, 1 if noise.gray else 3, *image.shape[2:])
            return (image + torch.randn(shape) * (noise.strength / 255)).clamp(0, 1)
        base = (image * self._luma).sum(1, keepdim=True) if noise.gray else image
        base = (base * 255).round().clamp(0, 255) / 255
        counts = 2.0 ** np.ceil(np.log2(len(torch.unique(base))))
        return (image + (torch.poisson(base * counts) / counts - base) * noise.strength).clamp(0, 1)

    def compress(self, image: Any, quality: float | None) -> Any:
        if quality is None:
            return image
        tables = (self.torch.from_numpy(table.astype(np.float32)) for table in (LUMA_TABLE, CHROMA_TABLE))
        return self.kornia.enhance.jpeg_codec_differentiable(image.clamp(0, 1), self.torch.tensor([quality]), *tables)


def ours(crop: np.ndarray, drawn: Drawn, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Makes HR and enlarged LR, 8 bits, like `xpsr_jax.data.examples.make_pair`."""
    degraded = apply(crop.astype(np.float32) / np.float32(255), drawn, rng)
    return round_to_uint8(degraded.hr), round_to_uint8(resize(degraded.lr, crop.shape[:2], "bicubic"))


def run(arguments: Arguments) -> None:
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    worker_process.tune()
    makers = {"xpsr_jax": ours, "kornia": Kornia().pair}
    images = [read_image(arguments.photos / name) for name in list_images(arguments.photos)]
    config = DataConfig(crop_size=arguments.crop_size)
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    waited: dict[str, float] = dict.fromkeys(makers, 0.0)
    for i in tqdm(range(-10, arguments.pairs), unit="pair", disable=None):
        rng = np.random.default_rng((arguments.seed, i + 10))
        crop = random_crop(images[rng.integers(len(images))], config, rng)
        drawn = draw(XPSR, rng)
        for name, make in makers.items() if i % 2 else reversed(makers.items()):
            begin, begin_wall = time.process_time(), time.perf_counter()
            make(crop, drawn, rng)
            if i >= 0:
                seconds[name].append(time.process_time() - begin)
                waited[name] += time.perf_counter() - begin_wall
    whole = time_examples(arguments, config)
    report(arguments, seconds, waited, differences(images, config), whole)


def time_examples(arguments: Arguments, config: DataConfig) -> float:
    """CPU seconds for an example, from a file of the photographs to its tokens."""
    source = open_sample_source(arguments.photos, missing="empty")
    tokenizer = load_tokenizer(SHIPPED_TOKENIZER)
    begin = 0.0
    for i in range(-5, arguments.pairs):
        if i == 0:
            begin = time.process_time()
        make_example(source[i % len(source)], config, tokenizer=tokenizer, seed=arguments.seed, index=i + 5)
    return (time.process_time() - begin) / arguments.pairs


def differences(images: Sequence[np.ndarray], config: DataConfig, count: int = 20) -> tuple[float, float]:
    """The mean absolute differences of both sides' HR and LR in 255ths, for pairs without noise and JPEG."""
    kornia, found = Kornia(), []
    for i in range(count):
        rng = np.random.default_rng((1, i))
        crop = random_crop(images[i % len(images)], config, rng)
        drawn = draw(XPSR, rng)
        first, second = (replace(stage, noise=None, jpeg_quality=None) for stage in (drawn.first, drawn.second))
        drawn = replace(drawn, first=first, second=second)
        pairs = ours(crop, drawn, rng), kornia.pair(crop, drawn, rng)
        found.append([np.abs(a.astype(float) - b).mean() for a, b in zip(*pairs, strict=True)])
    hr, lr = np.mean(found, axis=0)
    return float(hr), float(lr)


def report(
    arguments: Arguments,
    seconds: dict[str, list[float]],
    waited: dict[str, float],
    differ: tuple[float, float],
    whole: float,
) -> None:
    each = {name: statistics.mean(values) for name, values in seconds.items()}
    size = arguments.crop_size
    print(f"\n{arguments.pairs} pairs of {size} x {size} pixels, the same for both, in turn; one core, one thread\n")
    print("| | CPU ms per pair | pairs/s per core | median ms |\n|---|---|---|---|")
    for name, mean in each.items():
        print(f"| {name} | {mean * 1e3:.1f} | {1 / mean:.1f} | {statistics.median(seconds[name]) * 1e3:.1f} |")
    busy = sum(map(sum, seconds.values())) / sum(waited.values())
    print(
        f"\n{each['kornia'] / each['xpsr_jax']:.2f} times as many pairs. The core was available {busy:.0%} of the time."
    )
    print(f"Without noise and JPEG they differ by {differ[0]:.3f} (HR) and {differ[1]:.3f} (LR) of 255 on average.")
    print(
        f"\nA whole example, from these photographs' files to tokens: {whole * 1e3:.1f} ms, {1 / whole:.1f}/s per core."
    )
    print("Cores needed, over all hosts, if a training step takes:\n")
    print(f"| batch | {' | '.join(f'{second} s' for second in SECONDS)} |\n|{'---|' * (len(SECONDS) + 1)}")
    for batch in BATCHES:
        cores = (f"{batch * whole / second:.1f}" for second in SECONDS)
        print(f"| {batch} | {' | '.join(cores)} |")


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
