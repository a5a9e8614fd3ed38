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

    The defaults are the paper's, and where it is silent the released code's (method §7, §11).

    Attributes:
      sampler: how to get from noise to the image: "ddpm" (paper), "ddim", "dpm_solver" (DPM-Solver++(2M)), "unipc",
        "euler", "euler_ancestral", or "consistency" for a model trained for few steps; docs/reference/sampling.md
        compares them.
      steps: of the sampler, from pure noise to the image. 0: none; the result is the first stage's picture.
      spacing: which noise levels the steps visit; None: as the model's schedule says.
      karras: visit Karras' noise levels instead; of "dpm_solver", "unipc" and "euler".
      eta: randomness of "ddim", from 0 (none) to 1 (as random as DDPM).
      strength: fraction of the steps to run, the last ones. Below 1 the start is an LR image with less noise, less is
        made up, and the result keeps closer to the input.
      guidance_scale: how far to move away from the negative prompt, s in `guidance_form`. In the paper's form 0 turns
        it off, in the released code's 1 does.
      guidance_form: "paper": eps + s (eps - eps_negative); "released": eps_negative + s (eps - eps_negative). One
        equals the other with s larger by 1.
      guidance_rescale: from 0 to 1, how far to take back what guidance adds to the prediction's contrast (Lin et al.,
        2023).
      guidance_interval: part of the steps with guidance, as fractions from 0 (pure noise) to 1 (image). Elsewhere it
        costs nothing.
      conditioning_scale: strength of the ControlNet: multiplies its residuals.
      conditioning_interval: part of the steps with the ControlNet; outside of it the scale is 0.
      cache_interval: interval, in steps, at which the networks run whole and leave features for the steps between:
        these compute the UNet's outermost layers alone, not the ControlNet (Ma et al., 2024). 1: every step is whole.
      cache_levels: how far in these outermost layers reach: how many of the decoder's last layers, with the encoder's
        that they take up, every step computes anew. None: all of the finest resolution, which is the most (3 of Stable
        Diffusion 1.5).
      start: what sampling starts from. "lr": the LR image's latents noised to the first timestep (paper); "noise": pure
        noise; "lr_noised_twice": as "lr" and noised once more, to `added_noise_level` (released code).
      added_noise_level: timestep of that second noise.
      positive_words: appended to every high-level caption, "" for none. A long caption is cut, so that they stay within
        CLIP's 77 tokens.
      negative_high: high-level negative prompt, "" for an empty one (paper, Table 5).
      negative_low: low-level negative prompt; None: the image's own low-level caption (paper, eq. 6). The released code
        has fixed words.
      color_fix: how the result gets the colours of the LR image: by its mean and deviation ("adain"), by its low
        frequencies ("wavelet"), or not at all.
      color_reference: whose colours these are, where the model has a first stage: those of the LR image or of the
        first stage's.
      upscale: how many times larger the result is.
      process_size: a shorter side below it is enlarged to it before the networks see the image, in pixels.
      size_multiple: what the networks see is continued by reflection to multiples of that many latent cells, and cut
        again: pictures of many sizes are then of few, each of which has to be compiled for. 1: as it is.
      tile_size: side, in latent cells of 8 pixels, of the tiles in which the networks see a picture of more than
        `tile_size`² cells; 0: always the whole.
      tile_overlap: of neighbouring tiles, in latent cells.
      tile_weights: by which overlapping tiles are blended: a Gaussian around a tile's middle ("centred"), or the
        released code's, half a cell off.
      first_stage_tile: side, in pixels of the LR image, of the tiles in which the first stage sees a picture of more
        than `first_stage_tile`² pixels; 0: always the whole.
      vae_tile_size: as `tile_size`, for encoding and decoding; a border that is computed twice is part of it.
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
                f"tiles of {self.tile_size} latent cells cannot overlap by {self.tile_overlap}: let it be less than "
                "half of their side; a tile_size of 0 means no tiles"
            )
        if 0 != self.vae_tile_size < 32:
            raise UserError(
                f"vae_tile_size must be at least 32 latent cells, its border takes 12 on each side, not "
                f"{self.vae_tile_size}; 0 means no tiles"
            )
        if 0 != self.first_stage_tile < 64:
            raise UserError(
                f"first_stage_tile must be at least 64 pixels, its border takes a quarter on each side, not "
                f"{self.first_stage_tile}; 0 means no tiles"
            )
        for name in ("guidance_interval", "conditioning_interval"):
            begin, end = getattr(self, name)
            if begin > end:
                raise UserError(f"{name} must be two rising fractions between 0 and 1, not {begin} and {end}")
        if self.strength < 1 and self.start != "lr":
            raise UserError(
                f'strength {self.strength} begins from the LR image and needs start "lr", not "{self.start}"'
            )
        if self.eta and self.sampler != "ddim":
            raise UserError(f'eta is a setting of the sampler "ddim", not of "{self.sampler}"')
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
# Of models that were trained for it (configs/few_step.py).
FEW_STEP = Sampling(sampler="consistency", steps=1, spacing="trailing", guidance_scale=0.0)
PresetName = Literal["paper", "released", "fast", "few_step"]
SAMPLING_PRESETS: dict[str, Sampling] = {
    "paper": PAPER,
    "released": RELEASED,
    "fast": FAST,
    "few_step": FEW_STEP,
}
