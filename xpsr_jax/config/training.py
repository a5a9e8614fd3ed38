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
    """The networks and their initial weights.

    Attributes:
      base: model folders, or models on the hub (`owner/name`), whose components are loaded. Later ones take precedence:
        first Stable Diffusion, then for example XPSR. Their config.json files override the configurations below.
      from_scratch: components that may be missing in `base`. They are initialised at random, with the configurations
        below.
      unet: configuration if `base` has no UNet. `conditional_attention` applies even if it has one.
      controlnet: configuration if `base` has no ControlNet. `return_rgbs` and `use_latent_pred` apply even if it has
        one.
      autoencoder: configuration if `base` has no autoencoder.
      text_encoder: configuration if `base` has no text encoder.
      schedule: noise schedule if `base` has none.
      tokenizer: folder of CLIP's vocabulary. None: the base's, otherwise the one that ships with this package.
      first_stage: network that cleans and enlarges the LR image before the other networks: "own" (from the last base
        that has one, if any), "none", or the folder of an ESRGAN network or of a model that has one. It is frozen, and
        is exported with the model. `data.first_stage` decides when it is computed.
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
      folder: folder of images (with subfolders), or the output of `xpsr prepare`: ArrayRecord files, a TFDS dataset, or
        ready-made pairs (docs/train/data.md).
      mixture: (weight, folder) for several folders, instead of `folder`. The weights are their shares of the samples.
        Each folder has its own `captions.jsonl`. A path in `exclude` applies to all of them, unless it begins with the
        name of one folder.
      captions: JSON lines (docs/train/data.md). None: `captions.jsonl` in an image folder. The output of `xpsr prepare`
        contains its captions.
      lr_captions: captions of degraded versions of some or all images. None: no such captions.
        `data.high_caption_from` and `data.low_caption_from` decide which caption is used.
      exclude: names of files, paths within the folder, or subfolders that are held out of training. For records, they
        are left out when the records are written.
      missing_exclusions: what to do if a path in `exclude` does not exist: "error", or "ignore" it.
      missing_captions: what to do with an image without a caption: "error" (for a folder before the training begins),
        or use an "empty" one.
      on_error: what to do if an image cannot be read: "stop" the training, or "skip": report it, and use the next one.
      cache: keep decoded images in memory, in each worker process. 1440 × 960 pixels take 4 MB.
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
            raise UserError(
                "images.captions and images.lr_captions do not work with images.mixture: put a captions.jsonl into "
                "each of its folders"
            )


@dataclass(frozen=True)
class Loss:
    """Weights and settings of the losses.

    Attributes:
      constraint: λ of the Degradation-Free Constraint (paper, eq. 5; method §6). With 0, its heads are not built.
      reconstruction: weight of L1 in [-1, 1], in the stages "autoencoder" and "decoder".
      perceptual: weight of the perceptual distance, in the same two stages.
      dists: weight of DISTS, in addition to the perceptual distance.
      dists_side: side, in pixels, of the central square of each crop for which DISTS is computed. None: whole crops.
        DISTS costs twenty times as much as LPIPS on AlexNet.
      adversarial: weight of a discriminator's loss, which learns to tell parts of the reconstruction from photographs
        (Isola et al., 2017); in the stage "autoencoder", for an autoencoder that is already trained. 0: no
        discriminator.
      kl: weight of the divergence of the posterior from N(0, 1), the mean over latent elements, in the stage
        "autoencoder".
      metric: the perceptual distance. LPIPS on AlexNet costs a twentieth of LPIPS on VGG16; DISTS uses VGG16 too.
      patch: side, in pixels, of the squares for which the perceptual distance is computed. None: whole crops. DISTS
        compares statistics of its whole input; with patches, it also detects texture in the wrong place.
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
      learning_rate: learning rate after the warmup.
      b1: decay of the first moment of the gradients.
      b2: decay of the second moment of the gradients.
      epsilon: added to the root of the second moment.
      weight_decay: weight decay. In each step, a parameter shrinks by this fraction times the learning rate.
      schedule: schedule of the learning rate after the warmup: "constant", or "cosine" down to 2 % at the last step.
      decayed: ordered list of (path pattern, whether weight decay applies); the first match wins.
      clip: limit of the global norm of the gradients.
      warmup: number of steps in which the learning rate rises linearly from 0.
      ema: decay of the exponential moving average of the trained parameters. None: no average. In early steps it is
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
    """Number formats, kernel and memory use of the training step.

    Attributes:
      dtype: number format of activations.
      frozen_dtype: number format of frozen parameters. Trained ones are float32.
      attention: attention kernel, see `models.attention`.
      remat: recompute each block in the backward pass from the results of its matrix products, instead of storing all
        activations.
    """

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    frozen_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: Kernel = "auto"
    remat: bool = True


@dataclass(frozen=True)
class Mesh:
    """Device mesh. One of the sizes may be -1: it gets all remaining devices.

    Attributes:
      data: size of the axis that splits the batch and replicates parameters.
      fsdp: size of the axis that splits both the batch and the parameters.
      replicated_bytes: parameters up to this size are replicated on every device. Splitting them is not worth the
        communication: at full size, they are 0.13 % of the trained parameters. With a limit of 1 MiB they would be
        1.5 %, which doubles each chip's share on 64 chips.
    """

    data: Annotated[int, Range(-1)] = 1
    fsdp: Annotated[int, Range(-1)] = -1
    replicated_bytes: Annotated[int, Range(0)] = 2**18

    def __post_init__(self) -> None:
        check_fields(self)
        if 0 in (self.data, self.fsdp):
            raise UserError("mesh.data and mesh.fsdp must be at least 1, or -1, not 0")


ValidationMetric = Literal["psnr", "lpips", "dists"]


@dataclass(frozen=True)
class Validation:
    """Validation during training: pictures are restored and compared with their originals.

    Attributes:
      every: interval between validations, in steps; 0: never.
      count: number of pictures.
      metrics: metrics that are computed and logged: PSNR on luma, LPIPS (AlexNet) and DISTS. The last two need the
        extra "metrics", and are left out without it.
      images: source of the pictures. None: the training images.
      sampling: how the pictures are restored.
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
      name: name of the run. Its folder is `runs/<name>`, unless `run` is set.
      run: folder of the run. None: `runs/<name>`.
      stage: "xpsr". A model without a pretrained autoencoder also needs "autoencoder" before it and "decoder" after it.
        "few_step" makes a model of few steps from a trained one.
      steps: number of optimizer steps in the run.
      batch_size: images per step, on all devices and in all accumulated microbatches together.
      accumulation: microbatches per step.
      seed: seed of the initialisation, the order of the data, the degradations and the noise.
      trained: ordered list of (pattern of "network.path", whether it is trained); the first match wins. Parameters that
        match no pattern are frozen. A pattern that matches nothing is an error.
      sampling: default sampling settings of the exported model.
      note: note in the exported model, for its users.
      log_every: interval between lines of the log, in steps.
      checkpoint_every: interval between checkpoints, in steps.
      keep: number of checkpoints to keep, at least 2. If the newest is damaged, the run resumes from the one before.
      profile: number of steps to trace into the run's folder, beginning with the third step of this process; 0: none.
      wandb: project of Weights & Biases for additional logging. None: no such logging.
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
            raise UserError(
                'loss.adversarial works only in the stage "autoencoder"; the stage "few_step" has few_step.realism'
            )
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch_size={self.batch_size} cannot be split into accumulation={self.accumulation} microbatches"
            )

    @property
    def run_folder(self) -> Path:
        """Folder of the run's checkpoints and logs: `run`, or `runs/<name>` if that is None."""
        return self.run or Path("runs") / self.name
