"""Settings for training a model of few steps."""

from dataclasses import dataclass
from typing import Literal

from xpsr_jax.config.field_types import Count, Positive, Weight
from xpsr_jax.errors import UserError
from xpsr_jax.serialisation import check_fields


@dataclass(frozen=True)
class FewStep:
    """How a student with few evaluations is trained from a trained XPSR, the teacher (docs/train/few-steps.md).

    Attributes:
      evaluations: numbers of evaluations that the student is trained for. With `sampling.strength` below 1 these are
        the last ones of 1 / strength times as many steps.
      rank: rank of the low-rank adapters.
      adapted: ordered list of (pattern of a kernel's path, whether it has an adapter); the first match wins. It applies
        to the student, and with `realism="distribution"` also to the critic. Empty: no adapters, for a student whose
        UNet is itself among `trained`.
      realism: loss term that makes results look real. "distribution": the difference between the score of the guided
        teacher and the score of the student's own results, which a second set of adapters learns (Yin et al., 2024).
        "adversarial": a discriminator on features of the frozen UNet. "none": no such term, no critic and no teacher;
        every step trains the student.
      realism_weight: weight of that term.
      critic_steps: training steps of the critic before each training step of the student.
      critic_learning_rate: peak learning rate of the critic. Its schedule is the student's.
      guidance_scale: guidance scale of the teacher, in the paper's form.
      negative: negative prompt of the teacher.
      decoded: side, in latent cells, of the random part of each latent that is decoded and compared. None: the whole
        latent.
    """

    evaluations: tuple[Count, ...] = (1, 2, 4)
    rank: Count = 32
    adapted: tuple[tuple[str, bool], ...] = (
        (r"unet\..*\.pixel_attentions\..*", False),
        (r"unet\..*\.(to_q|to_k|to_v|to_out|proj_in|proj_out|conv1|conv2|conv_shortcut|conv)\.kernel", True),
        (r"unet\.(conv_in|conv_out)\.kernel", True),
    )
    realism: Literal["distribution", "adversarial", "none"] = "distribution"
    realism_weight: Weight = 1.0
    critic_steps: Count = 1
    critic_learning_rate: Positive = 5e-5
    guidance_scale: Weight = 5.5
    negative: str = "blurry, dotted, noise, unclear, low-res, over-smoothed"
    decoded: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.evaluations:
            raise UserError("few_step.evaluations must have at least one number")

    @property
    def has_critic(self) -> bool:
        """Whether a critic is trained in turn with the student."""
        return self.realism != "none"

    @property
    def cycle(self) -> int:
        """Training steps from one step of the student to the next."""
        return self.critic_steps + 1 if self.has_critic else 1
