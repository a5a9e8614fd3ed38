"""Low-level captions from the degradation that was drawn: what a captioner would say of the degraded image, for nothing.

`appearance` estimates what remains visible in the LR image; `describe` puts it in words.
"""

import math
from dataclasses import dataclass

import numpy as np

from xpsr_jax.data.degradation import Blur, Drawn, Noise, Stage
from xpsr_jax.data.kernels import noise_gain

ADVERBS = ("slightly", "moderately", "heavily")

# Limits of the three grades; below the first there is nothing to mention.
BLUR_LIMITS = (0.55, 0.8, 1.1)  # equivalent Gaussian sigma in LR pixels
NOISE_LIMITS = (3.0, 7.0, 13.0)  # standard deviation in 255ths
COMPRESSION_LIMITS = (0.35, 0.65, 1.0)  # scale of the JPEG quantisation tables (1.0 is quality 50)
LOSS_LIMITS = (1.15, 1.7, 2.4)  # LR pixels that one pixel of the smallest intermediate image covers


@dataclass(frozen=True)
class Appearance:
    """How a degraded image looks, at the LR size.

    Attributes:
      blur: standard deviation of the Gaussian that blurs as much, in LR pixels.
      noise: standard deviation in 255ths.
      gray_noise: most of it is the same in all channels.
      compression: scale of the JPEG quantisation tables: 0.1 (quality 95) to 1.67 (quality 30).
      resolution_loss: LR pixels to one pixel of the smallest intermediate image; 1 if that was no smaller than LR.
    """

    blur: float
    noise: float
    gray_noise: bool
    compression: float
    resolution_loss: float


def appearance(drawn: Drawn) -> Appearance:
    """Estimates the look of the degraded image; treats each step as the Gaussian blur that passes as much white noise."""
    scale_1 = drawn.first.scale  # sizes over HR size
    scale_2 = drawn.second.scale / drawn.upscale
    scale_lr = 1 / drawn.upscale
    blur_1 = _spread(drawn.first.blur) / 1.0
    blur_2 = _spread(drawn.second.blur) / scale_1**2
    ringing = _spread(drawn.sinc) / scale_lr**2
    loss = max(1.0, scale_lr / min(scale_1, scale_2, 1.0))
    # An image enlarged by linear interpolation looks blurred by about half of its pixels' size.
    enlarged = 0.25 * (loss**2 - 1) / scale_lr**2
    blur = scale_lr * math.sqrt(blur_1 + blur_2 + ringing + enlarged)

    reduce_1 = _reduction(scale_1, scale_2, drawn.second.resize_mode)
    reduce_2 = _reduction(scale_2, scale_lr, drawn.final_mode)
    sinc = _spread(drawn.sinc)
    to_second = (scale_1 / scale_2) ** 2
    to_last = (scale_2 / scale_lr) ** 2
    spread_2 = reduce_2 + sinc * to_last
    spread_1 = _spread(drawn.second.blur) + reduce_1 + spread_2 * to_second
    remaining = [
        (_deviation(noise) / math.sqrt(1 + 4 * math.pi * spread), noise.gray)
        for noise, spread in ((drawn.first.noise, spread_1), (drawn.second.noise, spread_2))
        if noise is not None
    ]
    total = math.sqrt(sum(deviation**2 for deviation, _ in remaining))
    return Appearance(
        blur=blur,
        noise=total,
        gray_noise=max(remaining, default=(0.0, False))[1],
        compression=max(_compression(drawn.second), 0.4 * _compression(drawn.first)),
        resolution_loss=loss,
    )


def _spread(blur: Blur | None) -> float:
    """Variance in square pixels of the Gaussian that passes as much white noise as the kernel."""
    if blur is None:
        return 0.0
    return max(0.0, (1 / noise_gain(blur.kernel()) - 1) / (4 * math.pi))


def _reduction(before: float, after: float, mode: str) -> float:
    """The same for a resize between two scales, in pixels before it."""
    step = before / after
    if mode == "area" and step > 1:
        return (step**2 - 1) / (4 * math.pi)
    return 0.0 if mode == "bicubic" else 0.1


def _deviation(noise: Noise) -> float:
    if noise.kind == "gaussian":
        return noise.strength
    return noise.strength * 255 * math.sqrt(0.4 / 256)  # of a picture of 256 levels, mean 0.4


def _compression(stage: Stage) -> float:
    quality = stage.jpeg_quality
    if quality is None:
        return 0.0
    return (5000 / quality if quality < 50 else 200 - 2 * quality) / 100


def _grade(value: float, limits: tuple[float, float, float]) -> int:
    return sum(value >= limit for limit in limits)


SHARP = ("sharp", "clear", "crisp", "in focus", "sharp and clear", "sharp with fine detail")
BLURRED = ("blurry", "blurred", "soft", "unsharp", "out of focus", "unclear")
NOISE_NOUNS = ("noise", "grain", "image noise")
COLOURED = ("colored", "chromatic", "color")
GRAY = ("gray", "monochrome", "luminance")
AMOUNTS = (("slight", "faint", "a little"), ("moderate", "visible", "noticeable"), ("heavy", "strong", "severe"))
NO_NOISE = ("little noise", "very little noise", "almost no noise", "no visible noise", "low noise")
ARTIFACTS = ("compression artifacts", "JPEG artifacts", "blocking artifacts", "compression blocks and ringing")
NO_ARTIFACTS = ("no compression artifacts", "no visible compression", "hardly any compression artifacts")
DETAIL = (
    ("a slightly reduced resolution", "some fine detail missing", "a slight loss of detail"),
    ("a reduced resolution", "much fine detail missing", "a moderate loss of detail"),
    ("a very low resolution", "nearly all fine detail missing", "a heavy loss of detail"),
)
SUBJECTS = ("The image", "The picture", "The photo", "This image")
CLARITY = {
    "good": ("The quality is good", "The quality is high", "Overall the quality is excellent"),
    "fair": ("The quality is fair", "The quality is acceptable", "Overall the quality is average"),
    "poor": ("The quality is poor", "The quality is low", "Overall the quality is bad"),
}


def describe(drawn: Drawn | None, rng: np.random.Generator | None = None) -> str:
    """One or two sentences on the quality of the image degraded as `drawn`; None: of a clean image.

    Blur, noise (its strength, coloured or gray), compression and lost resolution, each graded slight, moderate or heavy. `rng` chooses
    among wordings, so that a text encoder learns words rather than templates; without it the first wording is taken.
    """
    seen = Appearance(0.0, 0.0, False, 0.0, 1.0) if drawn is None else appearance(drawn)

    def choose(options):
        return options[0 if rng is None else rng.integers(len(options))]

    def chance(probability: float) -> bool:
        return rng is not None and rng.random() < probability

    blur = _grade(seen.blur, BLUR_LIMITS)
    noise = _grade(seen.noise, NOISE_LIMITS)
    compression = _grade(seen.compression, COMPRESSION_LIMITS)
    loss = _grade(seen.resolution_loss, LOSS_LIMITS)

    state = f"{choose((ADVERBS[blur - 1],) + EXTRA_ADVERBS[blur - 1])} {choose(BLURRED)}" if blur else choose(SHARP)
    flaws = []
    if noise:
        kind = choose(GRAY if seen.gray_noise else COLOURED)
        flaws.append(f"{choose(AMOUNTS[noise - 1])} {kind} {choose(NOISE_NOUNS)}")
    if compression:
        flaws.append(f"{choose(AMOUNTS[compression - 1])} {choose(ARTIFACTS)}")
    if loss:
        flaws.append(choose(DETAIL[loss - 1]))
    clean = []
    if not noise and not chance(0.3):
        clean.append(choose(NO_NOISE))
    if not compression and not chance(0.5):
        clean.append(choose(NO_ARTIFACTS))
    if rng is not None:
        rng.shuffle(flaws)

    subject = choose(SUBJECTS)
    if flaws and not blur and chance(0.5):
        sentence = f"{subject} has {_join(flaws)} but is {state}"
    elif flaws and chance(0.3):
        sentence = f"{subject} is {state} and shows {_join(flaws)}"
    elif flaws:
        sentence = f"{subject} is {state}, with {_join(flaws)}"
    elif clean:
        sentence = f"{subject} is {state} with {_join(clean)}"
        clean = []
    else:
        sentence = f"{subject} is {state}"
    sentences = [sentence]
    if clean and chance(0.6):
        sentences.append(f"There is {_join(clean)}")
    if chance(0.3):
        worst = max(blur, noise, compression, loss)
        sentences.append(choose(CLARITY["good" if worst == 0 else "fair" if worst == 1 else "poor"]))
    return ". ".join(sentences) + "."


EXTRA_ADVERBS = (("a little", "somewhat"), ("rather", "noticeably"), ("very", "strongly"))


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
