"""Low-level captions made from the drawn degradation, as a captioner would describe the degraded image.

`appearance` estimates what remains visible in the LR image, and `describe_appearance` describes it in words.
(`xpsr_jax/caption/measured.py` measures the same properties in the image itself.)
"""

import math
from dataclasses import dataclass

import numpy as np

from xpsr_jax.data.degradation import Blur, Drawn, Noise
from xpsr_jax.data.jpeg import quantisation_scale
from xpsr_jax.data.kernels import noise_gain

# The thresholds of slight, moderate and heavy. A value below the first one is not mentioned.
BLUR_LIMITS = (0.55, 0.75, 0.95)
NOISE_LIMITS = (3.0, 7.0, 12.0)
COMPRESSION_LIMITS = (0.35, 0.65, 1.0)
RESOLUTION_LIMITS = (1.15, 1.6, 2.2)


@dataclass(frozen=True)
class Appearance:
    """How a degraded image looks at the LR size.

    Attributes:
      blur: standard deviation, in LR pixels, of the Gaussian that would blur a well downsampled image as much.
      noise: standard deviation in 255ths.
      gray_noise: whether most of the noise is the same in all channels.
      compression: scale of the JPEG quantisation tables: 0.1 at quality 95, 1 at 50, 1.67 at 30.
      resolution_loss: LR pixels (per side) per pixel of the smallest intermediate image; 1 if none is smaller than LR.
    """

    blur: float = 0.0
    noise: float = 0.0
    gray_noise: bool = False
    compression: float = 0.0
    resolution_loss: float = 1.0


def appearance(drawn: Drawn) -> Appearance:
    """Estimates how the degraded image looks, without making it.

    Each step is replaced by the Gaussian blur that passes as much white noise, and the variances of these blurs are
    added. The rank correlations with measurements (five photographs, 120 draws) are 0.78 for blur and 0.86 for noise,
    without bias.
    """
    first, second = drawn.first, drawn.second
    lr = 1 / drawn.upscale
    scales = first.scale, second.scale * lr, lr  # of the images after each resize, relative to HR
    resolution_loss = lr / min(*scales, 1.0)

    # In square LR pixels. The factors are fitted, because photographs have less fine detail to lose than white noise.
    kernels = ((first.blur, 1.0), (second.blur, scales[0]), (drawn.sinc, lr))
    softened = sum(_spread(blur) * (lr / scale) ** 2 for blur, scale in kernels)
    blur = math.sqrt(0.12 + 0.7 * softened + 0.025 * (resolution_loss**2 - 1))

    # In square pixels of the image that each noise was added to.
    after_second = _resize_spread(scales[1], lr, drawn.final_mode) + _spread(drawn.sinc) * (scales[1] / lr) ** 2
    after_first = _spread(second.blur) + _resize_spread(scales[0], scales[1], second.resize_mode)
    after_first += after_second * (scales[0] / scales[1]) ** 2
    noises = [
        (_deviation(noise) / math.sqrt(1 + 4 * math.pi * spread), noise.gray)
        for noise, spread in ((first.noise, after_first), (second.noise, after_second))
        if noise is not None
    ]
    # The first compression is mostly blurred away.
    qualities = ((first.jpeg_quality, 0.4), (second.jpeg_quality, 1.0))
    return Appearance(
        blur=blur,
        noise=math.hypot(*(deviation for deviation, _ in noises)),
        gray_noise=max(noises, default=(0.0, False))[1],
        compression=max(0.0 if q is None else weight * quantisation_scale(q) for q, weight in qualities),
        resolution_loss=resolution_loss,
    )


def _spread(blur: Blur | None) -> float:
    """The variance, in square pixels, of the Gaussian that passes as much white noise as the kernel."""
    return 0.0 if blur is None else max(0.0, 1 / noise_gain(blur.kernel()) - 1) / (4 * math.pi)


def _resize_spread(before: float, after: float, mode: str) -> float:
    """The same for a resize from one scale to another, in square pixels of its input."""
    if mode == "area":
        return max(0.0, (before / after) ** 2 - 1) / (4 * math.pi)
    return 0.1 if mode == "bilinear" else 0.0


def _deviation(noise: Noise) -> float:
    """Standard deviation in 255ths. Poisson noise is that of a picture with 256 levels and mean brightness 0.4."""
    return noise.strength * (1.0 if noise.kind == "gaussian" else 255 * math.sqrt(0.4 / 256))


# Alternative wordings. The first of each is the default. Graded ones are for slight, moderate and heavy.
_SUBJECTS = ("The image", "The picture", "The photo", "This image")
_SHARP = ("sharp", "crisp", "in focus")
_FLAWLESS = ("sharp and clear", "clear", *_SHARP, "sharp with fine detail", "clear and detailed")
_BLURRED = ("blurry", "blurred", "soft", "unsharp", "out of focus", "unclear")
_ADVERBS = (
    ("slightly", "a little", "somewhat"),
    ("moderately", "rather", "noticeably"),
    ("heavily", "very", "strongly"),
)
_ADJECTIVES = (("slight", "faint", "mild"), ("moderate", "visible", "noticeable"), ("heavy", "strong", "severe"))
_COLORED = ("colored", "color", "chromatic")
_GRAY = ("gray", "monochrome", "luminance")
_NOISE = ("noise", "grain")
_ARTIFACTS = ("compression artifacts", "JPEG artifacts", "blocking artifacts", "compression blocks and ringing")
_RESOLUTION = (
    ("a slight loss of detail", "a slightly reduced resolution", "some fine detail missing"),
    ("a moderate loss of detail", "a low resolution", "much fine detail missing"),
    ("a heavy loss of detail", "a very low resolution", "nearly all fine detail missing"),
)
_NO_NOISE = ("little noise", "very little noise", "almost no noise", "no visible noise", "low noise")
_NO_ARTIFACTS = ("no compression artifacts", "no visible compression", "hardly any compression artifacts")
_VERDICTS = (
    ("The quality is good", "The quality is high", "Overall the quality is excellent"),
    ("The quality is fair", "The quality is acceptable", "Overall the quality is average"),
    ("The quality is poor", "The quality is low", "Overall the quality is bad"),
    ("The quality is very poor", "The quality is very low", "Overall the quality is terrible"),
)


def describe(drawn: Drawn | None, rng: np.random.Generator | None = None) -> str:
    """One or two sentences on the quality of an image degraded as `drawn` (None: a clean image).

    The words are those of `describe_appearance`.
    """
    return describe_appearance(Appearance() if drawn is None else appearance(drawn), rng)


def describe_appearance(seen: Appearance, rng: np.random.Generator | None = None) -> str:
    """One or two sentences on the quality of an image that looks like this.

    They describe the blur, the amount of noise and whether it is colored, the compression and the loss of resolution.
    `rng` chooses among wordings and orders, and may omit absent flaws, so that the networks learn words and not
    templates. Without it the default wording is used.
    """
    blur = _grade(seen.blur, BLUR_LIMITS)
    noise = _grade(seen.noise, NOISE_LIMITS)
    compression = _grade(seen.compression, COMPRESSION_LIMITS)
    resolution = _grade(seen.resolution_loss, RESOLUTION_LIMITS)
    blur = max(blur, resolution - 1)  # an image with low resolution is not sharp

    def choose(options: tuple[str, ...]) -> str:
        return options[0 if rng is None else rng.integers(len(options))]

    def sometimes(probability: float) -> bool:
        return rng is not None and rng.random() < probability

    flaws = []
    if noise:
        flaws.append(
            f"{choose(_ADJECTIVES[noise - 1])} {choose(_GRAY if seen.gray_noise else _COLORED)} {choose(_NOISE)}"
        )
    if compression:
        flaws.append(f"{choose(_ADJECTIVES[compression - 1])} {choose(_ARTIFACTS)}")
    if resolution:
        flaws.append(choose(_RESOLUTION[resolution - 1]))
    if rng is not None:
        rng.shuffle(flaws)
    absent = []
    if not noise and not sometimes(0.3):
        absent.append(choose(_NO_NOISE))
    if not compression and not sometimes(0.5):
        absent.append(choose(_NO_ARTIFACTS))

    subject = choose(_SUBJECTS)
    sharp = _SHARP if flaws else _FLAWLESS
    sharpness = f"{choose(_ADVERBS[blur - 1])} {choose(_BLURRED)}" if blur else choose(sharp)
    if not flaws:
        sentences = [f"{subject} is {sharpness}" + (f", with {_enumerate(absent)}" if absent else "")]
    else:
        if not blur and sometimes(0.5):
            sentences = [f"{subject} has {_enumerate(flaws)} but is {sharpness}"]
        elif sometimes(0.3):
            sentences = [f"{subject} is {sharpness} and shows {_enumerate(flaws)}"]
        else:
            sentences = [f"{subject} is {sharpness}, with {_enumerate(flaws)}"]
        if absent and sometimes(0.6):
            sentences.append(f"It has {_enumerate(absent)}")
    if sometimes(0.3):
        sentences.append(choose(_VERDICTS[max(blur, noise, compression, resolution)]))
    return ". ".join(sentences) + "."


def _grade(value: float, limits: tuple[float, float, float]) -> int:
    return sum(value >= limit for limit in limits)


def _enumerate(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
