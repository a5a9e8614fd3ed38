"""Settings of sampling, and the presets."""

from dataclasses import dataclass
from typing import Annotated, Literal

from xpsr_jax.config.field_types import Count, Fraction, Weight
from xpsr_jax.diffusion.choices import KARRAS, GuidanceForm, SamplerName, Start
from xpsr_jax.diffusion.schedule import Spacing
from xpsr_jax.errors import UserError
from xpsr_jax.serialisation import Range, check_fields


@dataclass(frozen=True)
class Sampling:
    """How images are restored.

    The defaults are the paper's. Where the paper does not say, they are the released code's (method §7, §11).

    Attributes:
      sampler: sampling method: "ddpm" (paper), "ddim", "dpm_solver" (DPM-Solver++(2M)), "unipc", "euler",
        "euler_ancestral", or "consistency" for a model trained for few steps. docs/reference/sampling.md compares
        them.
      steps: number of steps from pure noise to the image. 0: no steps; the result is the first stage's output.
      spacing: how the steps choose their noise levels. None: as in the model's schedule.
      karras: use Karras' noise levels instead; only for "dpm_solver", "unipc" and "euler".
      eta: randomness of "ddim", from 0 (none) to 1 (like DDPM).
      strength: fraction of the steps to run; only the last ones are run. Below 1, sampling starts from the LR image
        with less noise: the model invents less, and the result is closer to the input.
      guidance_scale: strength of the guidance away from the negative prompt, s in `guidance_form`. 0 turns it off in
        the paper's form, 1 in the released code's.
      guidance_form: "paper": eps + s (eps - eps_negative); "released": eps_negative + s (eps - eps_negative). With the
        released form, s must be larger by 1 for the same result.
      guidance_rescale: from 0 to 1, how much of the contrast that guidance adds is removed again (Lin et al., 2023).
      guidance_interval: part of the steps with guidance, as fractions from 0 (pure noise) to 1 (image). The other steps
        are cheaper.
      conditioning_scale: strength of the ControlNet: factor of its residuals.
      conditioning_interval: part of the steps with the ControlNet. In the other steps, the scale is 0.
      cache_interval: interval, in steps, between full evaluations of the networks. The steps between reuse cached
        features: they compute only the UNet's outermost layers, without the ControlNet (Ma et al., 2024). 1: every step
        is a full evaluation.
      cache_levels: number of the decoder's last layers, with their encoder layers, that every step computes. None: all
        layers of the finest resolution, which is the maximum (3 in Stable Diffusion 1.5).
      start: start of sampling. "lr": the LR image's latents with the noise of the first timestep (paper);
        "lr_without_noise": the same without noise, for a model that was trained with it; "noise": pure noise;
        "lr_noised_twice": like "lr", then noised again to `added_noise_level` (released code).
      added_noise_level: timestep of that second noise.
      positive_words: words appended to every high-level caption; "" for none. A long caption is cut, so that the words
        stay within CLIP's 77 tokens.
      negative_high: high-level negative prompt; "" for an empty one (paper, Table 5).
      negative_low: low-level negative prompt. None: the image's own low-level caption (paper, eq. 6). The released code
        has fixed words.
      color_fix: how the result gets the colours of the LR image: by mean and deviation ("adain"), by low frequencies
        ("wavelet"), or not at all.
      color_reference: image whose colours the result gets: the LR image, or the first stage's output if the model has a
        first stage.
      upscale: scale factor of the result.
      process_size: minimum of the shorter side, in pixels. Smaller images are enlarged to it before the networks.
      size_multiple: the networks' input is padded by reflection to a multiple of this many latent cells, and the result
        is cropped. Images of many sizes then share few sizes, and fewer programs are compiled. 1: no padding.
      tile_size: side of the tiles, in latent cells (of 8 pixels with Stable Diffusion). Images of more than
        `tile_size`² cells are processed in tiles. 0: no tiles.
      tile_overlap: overlap of neighbouring tiles, in latent cells.
      tile_weights: weights for blending overlapping tiles: a Gaussian around the middle of a tile ("centred"), or the
        released code's, which is off by half a cell ("released").
      first_stage_tile: side of the first stage's tiles, in pixels of the LR image. Images of more than
        `first_stage_tile`² pixels are processed in tiles. 0: no tiles.
      vae_tile_size: like `tile_size`, for encoding and decoding. It includes a border that is computed twice.
    """

    sampler: SamplerName = "ddpm"
    steps: Annotated[int, Range(0)] = 50
    spacing: Spacing | None = None
    karras: bool = False
    eta: Fraction = 0.0
    strength: Annotated[float, Range(0, 1, above=True)] = 1.0
    guidance_scale: Weight = 5.5
    guidance_form: GuidanceForm = "paper"
    guidance_rescale: Fraction = 0.0
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    conditioning_scale: Weight = 1.0
    conditioning_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    cache_interval: Count = 1
    cache_levels: Count | None = None
    start: Start = "lr"
    added_noise_level: Annotated[int, Range(0)] = 800
    positive_words: str = ""
    negative_high: str = "blurry, dotted, noise, unclear, low-res, over-smoothed"
    negative_low: str | None = None
    color_fix: Literal["adain", "wavelet", "none"] = "adain"
    color_reference: Literal["lr", "first_stage"] = "lr"
    upscale: Count = 4
    process_size: Count = 512
    size_multiple: Count = 8
    tile_size: Annotated[int, Range(0)] = 96
    tile_overlap: Annotated[int, Range(0)] = 16
    tile_weights: Literal["centred", "released"] = "centred"
    vae_tile_size: Annotated[int, Range(0)] = 96
    first_stage_tile: Annotated[int, Range(0)] = 320

    def __post_init__(self) -> None:
        check_fields(self)
        if 0 < self.tile_size <= 2 * self.tile_overlap:
            raise UserError(
                f"tiles of {self.tile_size} latent cells cannot overlap by {self.tile_overlap}: set tile_overlap below "
                "half of tile_size; a tile_size of 0 means no tiles"
            )
        if 0 != self.vae_tile_size < 32:
            raise UserError(
                f"vae_tile_size must be at least 32 latent cells, not {self.vae_tile_size}, because its border takes "
                "12 on each side; 0 means no tiles"
            )
        if 0 != self.first_stage_tile < 64:
            raise UserError(
                f"first_stage_tile must be at least 64 pixels, not {self.first_stage_tile}, because its border takes a "
                "quarter on each side; 0 means no tiles"
            )
        for name in ("guidance_interval", "conditioning_interval"):
            begin, end = getattr(self, name)
            if begin > end:
                raise UserError(f"{name} must be two fractions from 0 to 1 in rising order, not {begin} and {end}")
        if self.strength < 1 and self.start not in ("lr", "lr_without_noise"):
            raise UserError(
                f'strength {self.strength} starts from the LR image and needs start "lr" or "lr_without_noise", '
                f'not "{self.start}"'
            )
        if self.eta and self.sampler != "ddim":
            raise UserError(f'eta is a setting of the sampler "ddim", not of "{self.sampler}"; set it to 0')
        if self.karras and self.sampler not in KARRAS:
            raise UserError(f'karras is a setting of the samplers {", ".join(KARRAS)}, not of "{self.sampler}"')


PAPER = Sampling()
RELEASED = Sampling(
    steps=20,
    guidance_scale=4.5,
    guidance_form="released",
    start="lr_noised_twice",
    positive_words="clean, high-resolution, 8k, high quality, clear text.",
    negative_high="blurry, dotted, noise, raster lines, unclear, lowres, over-smoothed.",
    negative_low="high resolution, best quality, clear",
    size_multiple=1,
    tile_size=320,
    tile_overlap=8,
    tile_weights="released",
)
# A fifth of the paper's cost, with any weights (docs/reference/sampling.md).
FAST = Sampling(steps=20, cache_interval=3, cache_levels=2)
# For models that were trained for it (configs/few_step.py).
FEW_STEP = Sampling(sampler="consistency", steps=1, spacing="trailing", guidance_scale=0.0)
PresetName = Literal["paper", "released", "fast", "few_step"]
SAMPLING_PRESETS: dict[str, Sampling] = {
    "paper": PAPER,
    "released": RELEASED,
    "fast": FAST,
    "few_step": FEW_STEP,
}
