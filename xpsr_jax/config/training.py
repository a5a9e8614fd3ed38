"""Settings of a training run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from xpsr_jax.config.few_step import FewStep
from xpsr_jax.config.field_types import Count, Fraction, Positive, Weight
from xpsr_jax.config.sampling import Sampling
from xpsr_jax.data.config import DataConfig
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.errors import UserError
from xpsr_jax.models.configs import AutoencoderConfig, ControlNetConfig, Kernel, TextEncoderConfig, UNetConfig
from xpsr_jax.serialisation import Range, check_fields


@dataclass(frozen=True)
class Networks:
    """Which networks, and what they start from.

    Attributes:
      base: model folders, or models of the hub (`owner/name`), whose components are loaded, later ones first choice
        (Stable Diffusion's, then perhaps XPSR's). Their own config.json files hold.
      from_scratch: components that may be absent from `base`; they are initialised at random, of the configurations
        below.
      unet: configuration if `base` has none; of one that it has, `conditional_attention` still holds.
      controlnet: the same; of one that `base` has, `return_rgbs` and `use_latent_pred` still hold.
      autoencoder: configuration if `base` has none.
      text_encoder: configuration if `base` has none.
      schedule: of the noise, if `base` has none.
      tokenizer: folder of CLIP's vocabulary; None: the base's, or else the one that ships with this package.
      first_stage: what cleans and enlarges the LR image before the others see it: "own" (the last base's that has one,
        or none), "none", or the folder of an ESRGAN network or of a model that has one. It is frozen, and part of what
        is exported; `data.first_stage` says when it is computed.
    """

    base: tuple[Path, ...] = ()
    from_scratch: tuple[str, ...] = ("controlnet",)
    unet: UNetConfig = UNetConfig()
    controlnet: ControlNetConfig = ControlNetConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    schedule: Schedule = Schedule()
    tokenizer: Path | None = None
    first_stage: str = "own"


@dataclass(frozen=True)
class Images:
    """Photographs and their captions.

    Attributes:
      folder: images at any depth; or what `xpsr prepare` made of them: ArrayRecord files, a TFDS dataset, ready-made
        pairs (docs/train/data.md).
      mixture: (weight, folder) of several, in place of `folder`: each has its share of the samples. Each has its own
        `captions.jsonl`; what `exclude` names is an image of any of them, or begins with the folder's name.
      captions: JSON lines (docs/train/data.md); None: `captions.jsonl` in an image folder; what `xpsr prepare` made has
        its captions with it.
      lr_captions: the same of degraded versions of the images, for all of them or some; None: there are none. Which
        caption is used, `data.high_caption_from` and `data.low_caption_from` say.
      exclude: file names, paths within the folder or subfolders that are held out of training. Of records they are
        left out when these are written.
      missing_exclusions: an exclusion that is not in the folder is an error, or is ignored.
      missing_captions: an image without a caption is an error (of a folder before the training begins), or has an
        empty one.
      on_error: an image that cannot be read ends the training ("stop"), or is named, and the next one takes its place.
      cache: keep decoded images in memory, each worker process its own; 1440 × 960 pixels take 4 MB.
    """

    folder: Path = Path("data/train")
    mixture: tuple[tuple[Positive, Path], ...] = ()
    captions: Path | None = None
    lr_captions: Path | None = None
    exclude: tuple[str, ...] = ()
    missing_exclusions: Literal["error", "ignore"] = "error"
    missing_captions: Literal["error", "empty"] = "error"
    on_error: Literal["stop", "skip"] = "stop"
    cache: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.mixture and (self.captions or self.lr_captions):
            raise UserError("images.captions and lr_captions are of one folder; those of a mixture have their own")


@dataclass(frozen=True)
class Loss:
    """Weights of the losses.

    Attributes:
      constraint: λ of the Degradation-Free Constraint (paper, eq. 5; method §6); with 0 its heads are not built.
      reconstruction: of L1 in [-1, 1], in the autoencoder's and the decoder's stage.
      perceptual: of the perceptual distance, in the same two stages.
      dists: of DISTS beside the perceptual distance, wherever that is.
      dists_side: DISTS is of the square of this side, in pixels, in the middle of each crop; None: of whole crops. It
        costs twenty times what LPIPS on AlexNet does.
      adversarial: of how unlike a photograph each part of the reconstruction looks to a discriminator, which learns
        beside it (Isola et al., 2017); in the autoencoder's stage, of one that is trained already. 0: there is none.
      kl: of the posterior's divergence from N(0, 1), a mean over latent elements, in the autoencoder's stage.
      metric: the perceptual distance: LPIPS, which on AlexNet costs a twentieth of VGG16's, or DISTS, on VGG16 too.
      patch: the perceptual distance is that of squares of this size, in pixels; None: of whole crops. DISTS compares
        the statistics of all that it is given; within patches, a texture where none belongs counts.
    """

    constraint: Weight = 0.05
    reconstruction: Weight = 1.0
    perceptual: Weight = 0.5
    dists: Weight = 0.0
    dists_side: Count | None = None
    adversarial: Weight = 0.0
    kl: Weight = 1e-3
    metric: Literal["lpips_alex", "lpips_vgg", "dists"] = "lpips_vgg"
    patch: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Optimizer:
    """AdamW (method §6).

    Attributes:
      learning_rate: after the warmup.
      b1: decay of the gradients' first moment.
      b2: decay of their second moment.
      epsilon: added to the root of the second moment.
      weight_decay: times the learning rate, of a parameter a step.
      schedule: of the learning rate after `warmup` steps of linear rise: "constant", or "cosine" down to 2 % of it at
        the last step.
      decayed: ordered (path pattern, whether weight decay applies), first match wins.
      clip: bound of the global norm of the gradients.
      warmup: steps of linear rise from 0.
      ema: decay of the exponential moving average of the trained parameters, or None for none. Early on it is
        lower: (1 + step) / (10 + step).
    """

    learning_rate: Positive = 5e-5
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    epsilon: Positive = 1e-8
    weight_decay: Weight = 1e-2
    decayed: tuple[tuple[str, bool], ...] = ((".*", True),)
    clip: Positive = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[int, Range(0)] = 0
    ema: Fraction | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Precision:
    """How the training step computes.

    Attributes:
      dtype: of activations.
      frozen_dtype: of frozen parameters; trained ones are float32.
      attention: kernel, see `models.attention`.
      remat: recompute each block in the backward pass from its products' results, instead of storing all activations.
    """

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    frozen_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: Kernel = "auto"
    remat: bool = True


@dataclass(frozen=True)
class Mesh:
    """Device mesh; one of the sizes may be -1 and takes the devices that are left.

    Attributes:
      data: the batch is split, parameters are replicated.
      fsdp: the batch and the parameters are split.
      replicated_bytes: parameters up to this size are whole on every device. Splitting them saves no memory
        worth the communication: at full size 0.13 % of what trains is left whole; with 1 MiB it would be 1.5 %, which
        on 64 chips doubles a chip's share.
    """

    data: Annotated[int, Range(-1)] = 1
    fsdp: Annotated[int, Range(-1)] = -1
    replicated_bytes: Annotated[int, Range(0)] = 2**18

    def __post_init__(self) -> None:
        check_fields(self)
        if 0 in (self.data, self.fsdp):
            raise UserError("the mesh's data and fsdp must be at least 1, or -1, not 0")


ValidationMetric = Literal["psnr", "lpips", "dists"]


@dataclass(frozen=True)
class Validation:
    """Pictures restored during training, and how near they come to their originals.

    Attributes:
      every: interval between validations, in steps; 0: never.
      count: number of pictures.
      metrics: what is measured on them and logged: PSNR on luma, LPIPS (AlexNet) and DISTS. The last two need the extra
        "metrics" and are left out without it.
      images: where they come from; None: the training images.
      sampling: how they are restored.
    """

    every: Annotated[int, Range(0)] = 5000
    count: Annotated[int, Range(1)] = 4
    metrics: tuple[ValidationMetric, ...] = ("psnr", "lpips", "dists")
    images: Images | None = None
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Config:
    """A training run.

    Attributes:
      name: the run's folder is `runs/<name>` unless `run` says otherwise.
      run: the run's folder.
      stage: "xpsr"; for a model without a pretrained autoencoder also "autoencoder", the stage before it, and
        "decoder", the stage after it; "few_step" makes a model of few steps of a trained one.
      steps: of the optimizer; the run ends there.
      batch_size: images a step, of all devices and accumulated microbatches together.
      accumulation: microbatches a step.
      seed: of the initialisation, the order of the data, the degradations and the noise.
      trained: ordered (pattern of "network.path", whether it is trained), first match wins; what nothing
        matches is frozen. A pattern that matches nothing is an error.
      sampling: defaults that the exported model carries.
      note: what the exported model says of itself.
      log_every: steps between lines of the log.
      checkpoint_every: steps between checkpoints.
      keep: newest checkpoints kept, 2 or more: should the newest be damaged, the run goes on from the one before it.
      profile: steps to trace, from the third that this process runs, into the run's folder; 0: none.
      wandb: project of Weights & Biases to log to as well; None: none.
    """

    name: str = "xpsr"
    run: Path | None = None
    stage: Literal["xpsr", "autoencoder", "decoder", "few_step"] = "xpsr"
    steps: Count = 100_000
    batch_size: Count = 32
    accumulation: Count = 1
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    trained: tuple[tuple[str, bool], ...] = ((r"controlnet\..*", True), (r"unet\..*\.pixel_attentions\..*", True))
    images: Images = Images()
    data: DataConfig = DataConfig()
    networks: Networks = Networks()
    loss: Loss = Loss()
    few_step: FewStep = FewStep()
    optimizer: Optimizer = Optimizer()
    precision: Precision = Precision()
    mesh: Mesh = Mesh()
    validation: Validation = field(default_factory=Validation)
    sampling: Sampling = Sampling()
    note: str = ""
    log_every: Count = 50
    checkpoint_every: Count = 5000
    keep: Count = 2
    profile: Annotated[int, Range(0)] = 0
    wandb: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.keep < 2:
            raise UserError(f"keep must be at least 2, not {self.keep}: the newest checkpoint could be damaged")
        if self.loss.patch is not None and self.data.crop_size % self.loss.patch:
            raise UserError(f"loss.patch={self.loss.patch} must divide data.crop_size={self.data.crop_size}")
        if self.loss.dists_side is not None and self.loss.dists_side > self.data.crop_size:
            raise UserError(f"loss.dists_side={self.loss.dists_side} is more than data.crop_size={self.data.crop_size}")
        if self.loss.adversarial and self.stage != "autoencoder":
            raise UserError('loss.adversarial is of the stage "autoencoder"; a student has few_step.realism')
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch_size={self.batch_size} cannot be split into accumulation={self.accumulation} microbatches"
            )

    @property
    def run_folder(self) -> Path:
        """Folder of the run's checkpoints and logs: `run`, or `runs/<name>` where that is None."""
        return self.run or Path("runs") / self.name
