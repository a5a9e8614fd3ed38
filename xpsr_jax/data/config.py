"""Settings of the training data and of the degradation (method §6, §9).

This module imports no array library, because command lines load these settings even if nothing is computed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from xpsr_jax.serialisation import Length, Range, check_fields

ResizeMode = Literal["area", "bilinear", "bicubic"]
GaussianShape = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
KERNEL_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
Probability = Annotated[float, Range(0, 1)]
Quality = Annotated[float, Range(1, 100)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
SixWeights = tuple[NotNegative, NotNegative, NotNegative, NotNegative, NotNegative, NotNegative]
# A value is drawn uniformly from it.
Interval = tuple[NotNegative, NotNegative]
Positives = tuple[Positive, Positive]
Sizes = Annotated[tuple[Annotated[int, Range(1)], ...], Length(1, 100)]
Resizing = Annotated[tuple[ResizeMode, ...], Length(1, 100)]


@dataclass(frozen=True)
class BlurConfig:
    """The random choice of a blur kernel.

    Attributes:
      probability: probability of blurring.
      sizes: kernel widths in pixels, all equally likely.
      sinc_probability: probability of a sinc kernel instead of a Gaussian-like one; its cutoff is uniform from pi/3
        (width under 13) or pi/5 to pi.
      shape_weights: weights of iso, aniso, generalized_iso, generalized_aniso, plateau_iso, plateau_aniso.
      sigma: standard deviation of the Gaussians in pixels, uniform.
      generalized_beta: exponent of the generalized shapes; with equal probability uniform below 1 or uniform above 1.
      plateau_beta: exponent of the plateau shapes, drawn in the same way.
    """

    probability: Probability = 1.0
    sizes: Sizes = KERNEL_SIZES
    sinc_probability: Probability = 0.1
    shape_weights: SixWeights = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sigma: Positives = (0.2, 3.0)
    generalized_beta: Positives = (0.5, 4.0)
    plateau_beta: Positives = (1.0, 2.0)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class StageConfig:
    """The random choices of one round of blur, resize, noise and compression.

    Attributes:
      resize_probabilities: probabilities of enlarging, shrinking and keeping the size.
      scale: smallest and largest scale; uniform between 1 and the largest (enlarging) or the smallest (shrinking).
      resize_modes: interpolations, all equally likely.
      noise_probability: probability of adding noise.
      gaussian_probability: probability that added noise is Gaussian; otherwise it is Poisson noise.
      gaussian_sigma: standard deviation, in 255ths.
      poisson_scale: factor of the image's own Poisson noise.
      gray_probability: probability of noise that is the same in all three channels.
      jpeg_probability: probability of JPEG compression.
      jpeg_quality: quality of the compression, uniform.
    """

    blur: BlurConfig = BlurConfig()
    resize_probabilities: tuple[Probability, Probability, Probability] = (0.2, 0.7, 0.1)
    scale: Positives = (0.15, 1.5)
    resize_modes: Resizing = ("area", "bilinear", "bicubic")
    noise_probability: Probability = 1.0
    gaussian_probability: Probability = 0.5
    gaussian_sigma: Interval = (1.0, 30.0)
    poisson_scale: Interval = (0.05, 3.0)
    gray_probability: Probability = 0.4
    jpeg_probability: Probability = 1.0
    jpeg_quality: tuple[Quality, Quality] = (30.0, 95.0)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class DegradationConfig:
    """The whole degradation; the defaults are XPSR's training set (method §9).

    Attributes:
      upscale: HR size divided by LR size.
      sharpen: unsharp-mask the HR image first. The sharpened image is degraded.
      sharpened_target: whether the sharpened image is the target too. False: the target is the image as it was.
      first: the first round.
      second: the second round. Its scale is relative to the LR size.
      sinc_probability: probability of the last sinc filter; its cutoff is uniform from pi/3 to pi.
      sinc_sizes: widths of the last sinc filter in pixels, all equally likely.
      final_modes: interpolations of the resize to the LR size, all equally likely.
      jpeg_last_probability: probability of compressing after that resize and the sinc filter instead of before.
    """

    upscale: Annotated[int, Range(1)] = 4
    sharpen: bool = True
    sharpened_target: bool = True
    first: StageConfig = StageConfig()
    second: StageConfig = StageConfig(
        blur=BlurConfig(probability=0.8, sigma=(0.2, 1.5)),
        resize_probabilities=(0.3, 0.4, 0.3),
        scale=(0.3, 1.2),
        gaussian_sigma=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
    )
    sinc_probability: Probability = 0.8
    sinc_sizes: Sizes = KERNEL_SIZES
    final_modes: Resizing = ("area", "bilinear", "bicubic")
    jpeg_last_probability: Probability = 0.5

    def __post_init__(self) -> None:
        check_fields(self)


XPSR = DegradationConfig()

MILD = DegradationConfig(
    sharpen=False,
    first=StageConfig(
        scale=(0.3, 1.5), gaussian_sigma=(1.0, 15.0), poisson_scale=(0.05, 2.0), jpeg_quality=(60.0, 95.0)
    ),
    second=StageConfig(
        blur=BlurConfig(probability=0.5, sigma=(0.2, 1.5)),
        resize_probabilities=(0.3, 0.4, 0.3),
        scale=(0.6, 1.2),
        gaussian_sigma=(1.0, 12.0),
        poisson_scale=(0.05, 1.0),
        jpeg_quality=(60.0, 100.0),
    ),
)
"""The milder pipeline that the released code contains but never uses in training (method §9, last paragraph)."""

_UNTOUCHED = StageConfig(
    blur=BlurConfig(probability=0.0),
    resize_probabilities=(0.0, 0.0, 1.0),
    resize_modes=("bicubic",),
    noise_probability=0.0,
    jpeg_probability=0.0,
)
BICUBIC = DegradationConfig(
    sharpen=False, first=_UNTOUCHED, second=_UNTOUCHED, sinc_probability=0.0, final_modes=("bicubic",)
)
"""No degradation except the bicubic reduction to the LR size (not antialiased)."""


@dataclass(frozen=True)
class DataConfig:
    """Settings of the training examples.

    Attributes:
      crop_size: side of the square HR crop in pixels; a multiple of `degradation.upscale` and of the autoencoder's
        factor (8 for Stable Diffusion).
      crop_scale: the photograph is resized by a uniform factor from this range before the crop, but never to less than
        the crop. 0.5 shows twice as much along each side. Ready-made pairs are not resized.
      flip_probability: probability of mirroring left to right. Ready-made pairs are not mirrored.
      degrade: False: batches have only `hr` (not sharpened), `key` and `index`, which is enough for an autoencoder.
      degradation: settings that make LR images. Ready-made pairs use their stored LR image.
      clean_input_probability: probability that `lr` is the HR image itself, with a low-level caption of good quality
        (method §6).
      caption_dropout: probability of replacing both captions with "".
      high_dropout: probability of replacing the high-level caption with "".
      low_dropout: probability of replacing the low-level caption with "".
      high_caption_from: the caption of the HR image ("hr") or of its degraded version ("lr"); if only one of the two
        exists, that one is used.
      low_caption_from: "drawn" describes the drawn degradation. "file" uses the degraded image's caption or, if there
        is none, the photograph's; ready-made pairs always do this.
      negative_target_probability: probability that the target stays degraded (`lr`), with `negative_words` as the
        high-level caption (half the time) or after it. This teaches the negative prompt's meaning. There is no dropout
        and no clean input then.
      negative_words: the words for negative targets.
      first_stage: source of the first stage's pictures, if the model has one (`networks.first_stage`): "computed" in
        the training step, or "stored" with ready-made pairs (`xpsr prepare pairs --first-stage`). With 23 blocks,
        computing takes long without an accelerator.
      embeddings: folder of text embeddings made by `xpsr prepare embeddings`. Batches then have `high_embedding` and
        `low_embedding`, and training does not use the text encoder. Every caption must be in it, so `low_caption_from`
        must be "file", and negative targets are not possible. None: batches have tokens.
      workers: processes that make batches; 0: threads of this process make them.
      threads: threads of this process that make batches if there are no workers.
      prefetch: batches made in advance.
    """

    crop_size: Annotated[int, Range(1)] = 512
    crop_scale: Positives = (1.0, 1.0)
    flip_probability: Probability = 0.5
    degrade: bool = True
    degradation: DegradationConfig = XPSR
    clean_input_probability: Probability = 0.1
    caption_dropout: Probability = 0.0
    high_dropout: Probability = 0.0
    low_dropout: Probability = 0.0
    high_caption_from: Literal["hr", "lr"] = "hr"
    low_caption_from: Literal["drawn", "file"] = "drawn"
    negative_target_probability: Probability = 0.0
    negative_words: tuple[str, ...] = ("blurry", "dotted", "noise", "unclear", "low-res", "over-smoothed")
    first_stage: Literal["computed", "stored"] = "computed"
    embeddings: Path | None = None
    workers: Annotated[int, Range(0)] = 0
    threads: Annotated[int, Range(1)] = 2
    prefetch: Annotated[int, Range(1)] = 4

    def __post_init__(self) -> None:
        check_fields(self)
