"""Low-level captions from the image itself, without a model: how blurred, noisy, compressed, bright, colourful it is.

`measure_quality` measures, `describe_quality` says it in the words of the low-level instruction: clarity, colour,
noise, lighting. Clarity, noise and compression are measured in the units of `xpsr_jax.data.quality`, and put into the
same words as in training. docs/understand/captions.md has how well they tell degradations apart.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from xpsr_jax.data.jpeg import quantisation_scale
from xpsr_jax.data.quality import Appearance, describe_appearance

# A large photograph is measured on at most 16 squares of this side, at full size. A multiple of 8 keeps JPEG's blocks.
_PATCH = 256
_PATCHES_A_SIDE = 4

# How steep edges are in well reduced photographs that a Gaussian of this deviation (pixels) has blurred; medians over
# five crops of each of configs/tiny.py's training photographs: benchmarks/captions.py --calibrate.
_BLURS = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0)
_STEEPNESS = (0.579, 0.551, 0.503, 0.462, 0.432, 0.407, 0.387, 0.370, 0.345, 0.318, 0.298, 0.281)

# What the high-pass filter leaves of white noise.
_WHITE_NOISE = 0.778
# JPEG and blur take the finest part of noise away: this share of the drawn noise was found, in the median.
_NOISE_FOUND = 0.44
_COLORED_NOISE = 0.35
_FLAT = 1e-4

# JPEG qualities to try; steps of less make the dips too shallow to find.
_QUALITIES = range(20, 101, 8)
_DIP, _DIP_OF_BLOCKS = 0.08, 0.05


@dataclass(frozen=True)
class Quality:
    """What was measured.

    Attributes:
      appearance: blur, noise and compression, in the units of low-level captions in training. A loss of resolution is
        not told from blur.
      brightness, contrast: mean and standard deviation of CIE lightness, 0 (black) to 100 (white).
      saturation: mean CIE chroma: 0 for grey pictures, 25 on average, above 40 for very colourful ones.
    """

    appearance: Appearance
    brightness: float
    contrast: float
    saturation: float


def describe_quality(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """A low-level caption of two sentences, the same for the same pixels. Raises as `measure_quality`."""
    return quality_in_words(measure_quality(image))


def quality_in_words(quality: Quality) -> str:
    """First clarity, noise and compression as `xpsr_jax.data.quality` words them, then colours and lighting."""
    colors = _word(quality.saturation, (2, 12, 40), ("no colors", "muted colors", "natural colors", "vivid colors"))
    light = _word(quality.brightness, (25, 40, 72), ("dark", "dim", "good", "bright"))
    contrast = _word(quality.contrast, (10, 26), ("low", "normal", "high"))
    return f"{describe_appearance(quality.appearance)} It has {colors}, {light} lighting and {contrast} contrast."


def measure_quality(image: UInt8[np.ndarray, "h w 3"]) -> Quality:
    """Measures an RGB image of any size, at the size it has.

    Raises:
      ValueError: it is not an 8-bit RGB image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise ValueError(f"expected an 8-bit RGB image, got {image.dtype} of shape {image.shape}")
    patches = _patches(image)
    noise, colored = _noise(patches)
    seen = Appearance(
        blur=float(np.interp(-_steepness(patches), -np.array(_STEEPNESS), _BLURS)),
        noise=noise,
        gray_noise=not colored,
        compression=_compression(patches),
    )
    height, width = image.shape[:2]
    scale = min(1.0, _PATCH / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    lightness, a, b = cv2.split(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
    return Quality(seen, float(lightness.mean()), float(lightness.std()), float(np.hypot(a, b).mean()))


def _patches(image: UInt8[np.ndarray, "h w 3"]) -> list[UInt8[np.ndarray, "p q 3"]]:
    """The image, or squares spread evenly over a large one. Of at least 16 pixels a side: continued by reflection."""
    height, width = image.shape[:2]
    image = cv2.copyMakeBorder(image, 0, max(0, 16 - height), 0, max(0, 16 - width), cv2.BORDER_REFLECT)
    tops, lefts = (_starts(side) for side in image.shape[:2])
    return [image[top : top + _PATCH, left : left + _PATCH] for top in tops for left in lefts]


def _starts(side: int) -> list[int]:
    count = min(_PATCHES_A_SIDE, -(-side // _PATCH))
    return sorted({int(start) // 8 * 8 for start in np.linspace(0, max(0, side - _PATCH), count)})


def _steepness(patches: list[np.ndarray]) -> float:
    """How much of a strong edge, a step over four pixels, happens between two; 0.25 is a slope, 1 a jump.

    The strongest hundredth counts, so that noise matters little. (Measures of blur that average over the whole image,
    such as scikit-image's blur_effect, take noise for sharpness.)
    """
    span = 4
    steps, ratios = [], []
    for patch in patches:
        gray = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32)
        for lines in (gray, gray.T):
            between = np.abs(np.diff(lines, axis=1))
            steepest = np.lib.stride_tricks.sliding_window_view(between, span, axis=1).max(-1)
            step = np.abs(lines[:, span:] - lines[:, :-span])
            strong = step >= max(1.0, np.quantile(step, 0.9))  # a tenth of each is enough to find the hundredth of all
            steps.append(step[strong])
            ratios.append(steepest[strong] / step[strong])
    step, ratio = np.concatenate(steps), np.concatenate(ratios)
    if not len(step):
        return 1.0  # nothing is there that could be blurred
    count = sum(2 * patch.shape[0] * patch.shape[1] for patch in patches)
    strongest = np.argsort(step)[-max(1, count // 100) :]
    return float(np.median(ratio[strongest]))


def _noise(patches: list[np.ndarray]) -> tuple[float, bool]:
    """Standard deviation of the noise in 255ths, from where the image is flattest, and whether it is colored."""
    fine, coarse = [], []
    for patch in patches:
        values = patch.astype(np.float32)
        fine.append(_local_variance(values, 1.0).mean(-1).ravel())
        coarse.append(_local_variance(cv2.cvtColor(values, cv2.COLOR_RGB2YCrCb), 3.0).reshape(-1, 3))
    found = np.sqrt(np.quantile(np.concatenate(fine), 0.05)) / _WHITE_NOISE
    luma, *chroma = np.concatenate(coarse).T
    chroma = sum(chroma)
    flat = luma + chroma <= np.quantile(luma + chroma, 0.1)
    return float(found / _NOISE_FOUND), bool(chroma[flat].mean() > _COLORED_NOISE**2 * luma[flat].mean())


def _local_variance(values: Float[np.ndarray, "h w 3"], sigma: float) -> Float[np.ndarray, "h w 3"]:
    """Of what a Gaussian of that deviation takes away, around each pixel; 0 where the image is flat."""
    variance = cv2.blur(np.square(values - cv2.GaussianBlur(values, (0, 0), sigma)), (7, 7))
    # Rounding leaves at most 1e-8 of a flat image, also below 0. One pixel that differs by 1 makes 0.01.
    return np.where(variance < _FLAT, 0, variance)


def _compression(patches: list[np.ndarray]) -> float:
    """Scale of the JPEG tables that the image was last compressed with, 0 if there is no trace of any.

    An image changes least when it is compressed again as it was before: the error has a dip at that quality (Farid,
    Exposing digital forgeries from JPEG ghosts, 2009). It has nothing to do with blocks
    if it is there as well when they begin elsewhere. Blocks are looked for where a file's are: at multiples of 8.
    """
    grays = [cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY) for patch in patches]
    dips = _dips(grays)
    deepest = int(dips.argmax())
    elsewhere = _dips([gray[4:-4, 4:-4] for gray in grays])
    if dips[deepest] < _DIP or dips[deepest] - elsewhere[deepest] < _DIP_OF_BLOCKS:
        return 0.0
    return quantisation_scale(_QUALITIES[deepest + 1])


def _dips(grays: list[np.ndarray]) -> Float[np.ndarray, "inner_qualities"]:
    """By how much the logarithm of the error of compression is less at a quality than at those beside it."""
    errors = np.zeros(len(_QUALITIES))
    for gray in grays:
        for i, quality in enumerate(_QUALITIES):
            _, data = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, quality])
            again = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))
            errors[i] += np.square(cv2.absdiff(gray, again), dtype=np.float32).mean() / len(grays)
    logs = np.log(errors + 0.05)  # less than rounding to 8 bits does
    return (logs[:-2] + logs[2:]) / 2 - logs[1:-1]


def _word(value: float, limits: tuple[float, ...], words: tuple[str, ...]) -> str:
    return words[sum(value >= limit for limit in limits)]
