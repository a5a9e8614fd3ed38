"""Settings of the training data and of the degradation (method §6, §9).

Nothing here imports an array library: command lines read these settings before they know whether anything will be
computed.
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
# Drawn from uniformly.
Interval = tuple[NotNegative, NotNegative]
Positives = tuple[Positive, Positive]
Sizes = Annotated[tuple[Annotated[int, Range(1)], ...], Length(1, 100)]
Resizing = Annotated[tuple[ResizeMode, ...], Length(1, 100)]


@dataclass(frozen=True)
class BlurConfig:
    """How a blur kernel is drawn.

    Attributes:
      probability: of blurring at all.
      sizes: kernel widths in pixels, all equally likely.
      sinc_probability: of a sinc kernel instead of a Gaussian-like one; its cutoff is uniform from pi/3 (width under
        13) or pi/5 to pi.
      shape_weights: of iso, aniso, generalized_iso, generalized_aniso, plateau_iso, plateau_aniso.
      sigma: of the Gaussians in pixels, uniform.
      generalized_beta: exponent of the generalized shapes; half the time uniform below 1 and half above.
      plateau_beta: the same of the plateau shapes.
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
    """How one round of blur, resize, noise and compression is drawn.

    Attributes:
      resize_probabilities: of enlarging, shrinking and keeping the size.
      scale: smallest and largest scale; uniform between 1 and the one or the other.
      resize_modes: all equally likely.
      noise_probability: of adding noise at all.
      gaussian_probability: of Gaussian noise where there is noise; else Poisson noise.
      gaussian_sigma: standard deviation, in 255ths.
      poisson_scale: what the image's own Poisson noise is multiplied by.
      gray_probability: of noise that is the same in all three channels.
      jpeg_probability: of JPEG compression at all.
      jpeg_quality: of that compression, uniform.
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
      upscale: HR size over LR size.
      sharpen: unsharp-mask the HR image first. The sharpened image is both what is degraded and the target.
      first: the first round.
      second: the second round. Its scale is relative to the LR size.
      sinc_probability: of the last sinc filter; its cutoff is uniform from pi/3 to pi.
      sinc_sizes: its widths in pixels, all equally likely.
      final_modes: of the resize to the LR size.
      jpeg_last_probability: of compressing after that resize and the sinc filter, not before.
    """

    upscale: Annotated[int, Range(1)] = 4
    sharpen: bool = True
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
"""The milder pipeline that lies beside the released code; its training never applies it (method §9, last paragraph)."""

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
"""No degradation but the (not antialiased) bicubic reduction to the LR size."""


@dataclass(frozen=True)
class DataConfig:
    """What a training example is.

    Attributes:
      crop_size: side of the square HR crop in pixels; a multiple of `degradation.upscale` and of the autoencoder's
        factor (8 for Stable Diffusion).
      crop_scale: the photograph is resized by a uniform factor from this range before the crop, not to less than the
        crop: 0.5 shows twice as much along each side. Ready-made pairs are not.
      flip_probability: of mirroring left to right. Ready-made pairs are not.
      degrade: False gives batches of `hr`, `key` and `index` only, `hr` as it is in the photograph: enough for an
        autoencoder.
      degradation: how LR images are made; of ready-made pairs the LR image is the stored one.
      clean_input_probability: of `lr` being the HR image itself, with a low-level caption of its good quality (method
        §6).
      caption_dropout: of replacing both captions by "".
      high_dropout: of replacing the high-level caption by "".
      low_dropout: of replacing the low-level caption by "".
      high_caption_from: the caption of the HR image or of its degraded version; where there is only one, that one.
      low_caption_from: "drawn" describes the degradation that was drawn; "file", and "drawn" for a ready-made pair,
        takes the caption of the degraded image (where there is none, of the photograph).
      negative_target_probability: of a target that stays degraded (`lr`), with a high-level caption of
        `negative_words`, alone half the time, else after the real one. It gives the negative prompt something to mean.
        No dropout and no clean input then.
      negative_words: those words.
      first_stage: where the pictures of the model's first stage come from, if it has one (`networks.first_stage`):
        "computed" in the training step, or "stored" with ready-made pairs (`xpsr prepare pairs --first-stage`). With 23
        blocks computing takes long without an accelerator.
      embeddings: folder of text embeddings that `xpsr prepare embeddings` made: batches then hold `high_embedding` and
        `low_embedding`, and the text encoder has no part in training. Every caption must be in it, so
        `low_caption_from` must be "file", and there are no negative targets. None: batches hold tokens.
      workers: processes that make batches; 0: threads of this process do.
      threads: of this process that make batches, without workers.
      prefetch: batches kept ready.
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
