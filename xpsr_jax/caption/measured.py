"""Low-level captions from measurements of the image, without a model: blur, noise, compression, lighting, colours.

`measure_quality` measures. `describe_quality` describes the result with the terms of the low-level instruction:
clarity, colour, noise, lighting. Clarity, noise and compression have the units of `xpsr_jax.data.quality`, and the same
words as in training. docs/understand/captions.md shows how well the captions distinguish degradations.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from xpsr_jax.data.jpeg import quantisation_scale
from xpsr_jax.data.quality import Appearance, describe_appearance

# A large photograph is measured on at most 16 squares with this side, at full resolution. The side is a multiple of 8,
# so JPEG's blocks stay whole.
_PATCH = 256
_PATCHES_A_SIDE = 4

# Steepness of edges in sharp photographs that were blurred by a Gaussian with this deviation (pixels). Medians over
# five crops of each training photograph of configs/tiny.py: benchmarks/captions.py --calibrate.
_BLURS = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0)
_STEEPNESS = (0.579, 0.551, 0.503, 0.462, 0.432, 0.407, 0.387, 0.370, 0.345, 0.318, 0.298, 0.281)

# The share of white noise that passes the high-pass filter.
_WHITE_NOISE = 0.778
# JPEG and blur remove the finest part of noise. The median share of the added noise that was measured is this.
_NOISE_FOUND = 0.44
_COLORED_NOISE = 0.35
_FLAT = 1e-4

# JPEG qualities to try. With smaller steps the dips would be too shallow to find.
_QUALITIES = range(20, 101, 8)
_DIP, _DIP_OF_BLOCKS = 0.08, 0.05


@dataclass(frozen=True)
class Quality:
    """The measurements of an image.

    Attributes:
      appearance: blur, noise and compression, in the units of low-level captions in training. A loss of resolution
        counts as blur.
      brightness, contrast: mean and standard deviation of CIE lightness, 0 (black) to 100 (white).
      saturation: mean CIE chroma: 0 for grey pictures, 25 on average, above 40 for very colourful ones.
    """

    appearance: Appearance
    brightness: float
    contrast: float
    saturation: float


def describe_quality(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """A low-level caption of two sentences. Equal pixels give equal captions. Raises like `measure_quality`."""
    return quality_in_words(measure_quality(image))


def quality_in_words(quality: Quality) -> str:
    """Describes clarity, noise and compression with the words of `xpsr_jax.data.quality`, then colours and lighting."""
    colors = _word(quality.saturation, (2, 12, 40), ("no colors", "muted colors", "natural colors", "vivid colors"))
    light = _word(quality.brightness, (25, 40, 72), ("dark", "dim", "good", "bright"))
    contrast = _word(quality.contrast, (10, 26), ("low", "normal", "high"))
    return f"{describe_appearance(quality.appearance)} It has {colors}, {light} lighting and {contrast} contrast."


def measure_quality(image: UInt8[np.ndarray, "h w 3"]) -> Quality:
    """Measures an RGB image of any size, without resizing it.

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
    """The image, or squares spread evenly over a large image. Sides below 16 pixels are padded by reflection."""
    height, width = image.shape[:2]
    image = cv2.copyMakeBorder(image, 0, max(0, 16 - height), 0, max(0, 16 - width), cv2.BORDER_REFLECT)
    tops, lefts = (_starts(side) for side in image.shape[:2])
    return [image[top : top + _PATCH, left : left + _PATCH] for top in tops for left in lefts]


def _starts(side: int) -> list[int]:
    count = min(_PATCHES_A_SIDE, -(-side // _PATCH))
    return sorted({int(start) // 8 * 8 for start in np.linspace(0, max(0, side - _PATCH), count)})


def _steepness(patches: list[np.ndarray]) -> float:
    """The steepness of strong edges: how much of a step over four pixels occurs between two neighbouring pixels.

    0.25 is an even slope, 1 is a jump. Only the strongest 1 % of edges counts, so noise has little effect. (Measures of
    blur that average over the whole image, such as scikit-image's blur_effect, mistake noise for sharpness.)
    """
    span = 4
    steps, ratios = [], []
    for patch in patches:
        gray = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32)
        for lines in (gray, gray.T):
            between = np.abs(np.diff(lines, axis=1))
            steepest = np.lib.stride_tricks.sliding_window_view(between, span, axis=1).max(-1)
            step = np.abs(lines[:, span:] - lines[:, :-span])
            # The strongest 10 % of each patch contain the strongest 1 % of all.
            strong = step >= max(1.0, np.quantile(step, 0.9))
            steps.append(step[strong])
            ratios.append(steepest[strong] / step[strong])
    step, ratio = np.concatenate(steps), np.concatenate(ratios)
    if not len(step):
        return 1.0  # there are no edges, so nothing looks blurred
    count = sum(2 * patch.shape[0] * patch.shape[1] for patch in patches)
    strongest = np.argsort(step)[-max(1, count // 100) :]
    return float(np.median(ratio[strongest]))


def _noise(patches: list[np.ndarray]) -> tuple[float, bool]:
    """The standard deviation of the noise in 255ths, measured in the flattest areas, and whether it is coloured."""
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
    """Variance of the high frequencies, which a Gaussian of deviation `sigma` removes, around each pixel.

    0 where the image is flat.
    """
    variance = cv2.blur(np.square(values - cv2.GaussianBlur(values, (0, 0), sigma)), (7, 7))
    # In a flat image, rounding gives at most 1e-8 in absolute value. A single pixel that differs by 1 gives 0.01.
    return np.where(variance < _FLAT, 0, variance)


def _compression(patches: list[np.ndarray]) -> float:
    """The scale of the JPEG tables of the image's last compression. 0 if there is no trace of compression.

    An image changes least if it is compressed again at the same quality. So the error has a dip at that quality (Farid,
    Exposing digital forgeries from JPEG ghosts, 2009). A dip that is equally deep for shifted blocks does not come from
    JPEG. Blocks are expected at multiples of 8, as in a file.
    """
    grays = [cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY) for patch in patches]
    dips = _dips(grays)
    deepest = int(dips.argmax())
    elsewhere = _dips([gray[4:-4, 4:-4] for gray in grays])
    if dips[deepest] < _DIP or dips[deepest] - elsewhere[deepest] < _DIP_OF_BLOCKS:
        return 0.0
    return quantisation_scale(_QUALITIES[deepest + 1])


def _dips(grays: list[np.ndarray]) -> Float[np.ndarray, "inner_qualities"]:
    """The depth of the dip at each inner quality: the mean of its neighbours' log errors minus its own log error."""
    errors = np.zeros(len(_QUALITIES))
    for gray in grays:
        for i, quality in enumerate(_QUALITIES):
            _, data = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, quality])
            again = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))
            errors[i] += np.square(cv2.absdiff(gray, again), dtype=np.float32).mean() / len(grays)
    logs = np.log(errors + 0.05)  # 0.05 is less than the error of rounding to 8 bits
    return (logs[:-2] + logs[2:]) / 2 - logs[1:-1]


def _word(value: float, limits: tuple[float, ...], words: tuple[str, ...]) -> str:
    return words[sum(value >= limit for limit in limits)]
