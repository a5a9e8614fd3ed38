"""The degradation that makes low-resolution training images (method §9).

It is Real-ESRGAN's second-order model as XPSR uses it, but every choice is drawn separately for each image. (The
released code draws the resizes, the kind of noise, whether to blur a second time and the last order once for a batch of
10, which also shares one gray noise field.) `draw` makes the choices, `apply` executes them, `degrade` does both. Their
results depend only on their arguments, including the random generator. All operators (kernels, filtering, sharpening,
resizing, JPEG) equal the released code's to float32 rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
from jaxtyping import Float

from xpsr_jax.data.config import BlurConfig, DegradationConfig, GaussianShape, Interval, ResizeMode, StageConfig
from xpsr_jax.data.jpeg import jpeg
from xpsr_jax.data.kernels import filter_image, gaussian_kernel, sharpen, sinc_kernel
from xpsr_jax.data.noise import add_gaussian_noise, add_poisson_noise
from xpsr_jax.data.resize import rescale, resize

T = TypeVar("T")
SHAPES: tuple[GaussianShape, ...] = get_args(GaussianShape)


@dataclass(frozen=True)
class Blur:
    """A drawn kernel. `cutoff` (radians per pixel) is used by "sinc" only, the fields before it by the other shapes."""

    shape: GaussianShape | Literal["sinc"]
    size: int
    sigma_x: float = 0.0
    sigma_y: float = 0.0
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = 0.0

    def kernel(self) -> Float[np.ndarray, "size size"]:
        """The kernel with these parameters; it sums to 1 (`data.kernels`, method §9)."""
        if self.shape == "sinc":
            return sinc_kernel(size=self.size, cutoff=self.cutoff)
        return gaussian_kernel(
            self.shape,
            size=self.size,
            sigma_x=self.sigma_x,
            sigma_y=self.sigma_y,
            angle=self.angle,
            beta=self.beta,
        )


@dataclass(frozen=True)
class Noise:
    """Drawn noise.

    Attributes:
      strength: for "gaussian" the standard deviation in 255ths, for "poisson" the factor of the image's own noise.
      gray: whether it is the same in all channels.
    """

    kind: Literal["gaussian", "poisson"]
    strength: float
    gray: bool


@dataclass(frozen=True)
class Stage:
    """The choices drawn for one round; None for a step that is left out.

    Attributes:
      scale: the scale of the resize, relative to HR in the first round and to LR in the second.
    """

    blur: Blur | None
    scale: float
    resize_mode: ResizeMode
    noise: Noise | None
    jpeg_quality: float | None


@dataclass(frozen=True)
class Drawn:
    """All choices drawn for one image, except the noise fields.

    Attributes:
      jpeg_last: whether the second round's JPEG compression comes after the last resize and sinc filter.
    """

    upscale: int
    sharpen: bool
    sharpened_target: bool
    first: Stage
    second: Stage
    sinc: Blur | None
    final_mode: ResizeMode
    jpeg_last: bool


class Degraded(NamedTuple):
    """A training pair.

    Attributes:
      lr: RGB float32 in [0, 1], not rounded to 8 bits.
      hr: the target; sharpened only if `Drawn.sharpen` and `Drawn.sharpened_target`. RGB float32 in [0, 1].
      drawn: the choices that were executed.
    """

    lr: Float[np.ndarray, "h/4 w/4 3"]
    hr: Float[np.ndarray, "h w 3"]
    drawn: Drawn


def degrade(hr: Float[np.ndarray, "h w 3"], config: DegradationConfig, rng: np.random.Generator) -> Degraded:
    """Degrades an RGB float32 image in [0, 1] of any size divisible by `config.upscale` (paper: 512 x 512).

    Raises:
      ValueError: the image has another type or shape.
    """
    return apply(hr, draw(config, rng), rng)


def draw(config: DegradationConfig, rng: np.random.Generator) -> Drawn:
    """Draws all choices except the noise fields."""
    first = _draw_stage(config.first, rng)
    second = _draw_stage(config.second, rng)
    sinc = None
    if rng.random() < config.sinc_probability:
        sinc = Blur("sinc", _choose(config.sinc_sizes, rng), cutoff=rng.uniform(np.pi / 3, np.pi))
    return Drawn(
        upscale=config.upscale,
        sharpen=config.sharpen,
        sharpened_target=config.sharpened_target,
        first=first,
        second=second,
        sinc=sinc,
        final_mode=_choose(config.final_modes, rng),
        jpeg_last=rng.random() < config.jpeg_last_probability,
    )


def apply(hr: Float[np.ndarray, "h w 3"], drawn: Drawn, rng: np.random.Generator) -> Degraded:
    """Executes the drawn choices. `rng` draws the noise fields."""
    if hr.ndim != 3 or hr.shape[2] != 3 or hr.dtype != np.float32:
        raise ValueError(f"The image to degrade must be float32 of shape (h, w, 3), got {hr.dtype} {hr.shape}.")
    height, width = hr.shape[0] // drawn.upscale, hr.shape[1] // drawn.upscale
    if (height * drawn.upscale, width * drawn.upscale) != hr.shape[:2]:
        raise ValueError(f"The image to degrade must be divisible by upscale={drawn.upscale}, got {hr.shape[:2]}.")
    sharp = sharpen(hr) if drawn.sharpen else hr

    first, second = drawn.first, drawn.second
    image = _blur(sharp, first.blur)
    if first.scale != 1:
        image = rescale(image, first.scale, first.resize_mode)
    image = _add_noise(image, first.noise, rng)
    image = _compress(image, first.jpeg_quality)

    image = _blur(image, second.blur)
    size = max(1, int(height * second.scale)), max(1, int(width * second.scale))
    image = resize(image, size, second.resize_mode)
    image = _add_noise(image, second.noise, rng)
    if not drawn.jpeg_last:
        image = _compress(image, second.jpeg_quality)
    image = _blur(resize(image, (height, width), drawn.final_mode), drawn.sinc)
    if drawn.jpeg_last:
        image = _compress(image, second.jpeg_quality)
    return Degraded(np.clip(image, 0, 1), sharp if drawn.sharpened_target else hr, drawn)


def _draw_stage(config: StageConfig, rng: np.random.Generator) -> Stage:
    blur = _draw_blur(config.blur, rng) if rng.random() < config.blur.probability else None
    direction = rng.choice(3, p=config.resize_probabilities)
    scale = (rng.uniform(1, config.scale[1]), rng.uniform(config.scale[0], 1), 1.0)[direction]
    mode = _choose(config.resize_modes, rng)
    noise = _draw_noise(config, rng) if rng.random() < config.noise_probability else None
    quality = rng.uniform(*config.jpeg_quality) if rng.random() < config.jpeg_probability else None
    return Stage(blur, scale, mode, noise, quality)


def _draw_blur(config: BlurConfig, rng: np.random.Generator) -> Blur:
    size = _choose(config.sizes, rng)
    if rng.random() < config.sinc_probability:
        return Blur("sinc", size, cutoff=rng.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi))
    weights = np.array(config.shape_weights)
    shape = SHAPES[rng.choice(len(SHAPES), p=weights / weights.sum())]
    sigma_x = sigma_y = rng.uniform(*config.sigma)
    angle, beta = 0.0, 1.0
    if shape.endswith("aniso"):
        sigma_y = rng.uniform(*config.sigma)
        angle = rng.uniform(-np.pi, np.pi)
    if shape.startswith("generalized"):
        beta = _draw_beta(config.generalized_beta, rng)
    elif shape.startswith("plateau"):
        beta = _draw_beta(config.plateau_beta, rng)
    return Blur(shape, size, sigma_x=sigma_x, sigma_y=sigma_y, angle=angle, beta=beta)


def _draw_beta(limits: Interval, rng: np.random.Generator) -> float:
    return rng.uniform(limits[0], 1) if rng.random() < 0.5 else rng.uniform(1, limits[1])


def _draw_noise(config: StageConfig, rng: np.random.Generator) -> Noise:
    gray = rng.random() < config.gray_probability
    if rng.random() < config.gaussian_probability:
        return Noise("gaussian", rng.uniform(*config.gaussian_sigma), gray)
    return Noise("poisson", rng.uniform(*config.poisson_scale), gray)


def _choose(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _blur(image: np.ndarray, blur: Blur | None) -> np.ndarray:
    return image if blur is None else filter_image(image, blur.kernel())


def _add_noise(image: np.ndarray, noise: Noise | None, rng: np.random.Generator) -> np.ndarray:
    if noise is None:
        return image
    add = add_gaussian_noise if noise.kind == "gaussian" else add_poisson_noise
    return add(image, noise.strength, gray=noise.gray, rng=rng)


def _compress(image: np.ndarray, quality: float | None) -> np.ndarray:
    return image if quality is None else jpeg(image, quality)
