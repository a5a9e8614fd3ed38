"""XPSR on Stable Diffusion 1.5, trained as the paper says; where it is silent, as its released code does.

    xpsr train --config xpsr --networks.base STABLE_DIFFUSION --images.folder PHOTOS

STABLE_DIFFUSION is Stable Diffusion 1.5 in diffusers' layout, PHOTOS holds images of 512 x 512 pixels or more, at any
depth, and captions.jsonl. configs/xpsr_released.py differs in fields that are explained here
(docs/understand/method.md §11).
"""

from pathlib import Path

from xpsr_jax.config import PAPER, Config, Images, Loss, Mesh, Networks, Optimizer, Precision, Validation
from xpsr_jax.data.config import XPSR, DataConfig

VARIANTS = ("default",)


def config(variant: str = "default") -> Config:
    return Config(
        name="xpsr",
        # The paper's 100K iterations. The released code runs 12 epochs.
        steps=100_000,
        batch_size=32,
        # Everything in the ControlNet, and the Conditional Attention in the UNet; 868 million parameters.
        trained=((r"controlnet\..*", True), (r"unet\..*\.pixel_attentions\..*", True)),
        # Both captions of captions.jsonl are LLaVA's in the paper. Its code has Q-Instruct write the low-level ones.
        images=Images(folder=Path("data/train")),
        data=DataConfig(
            crop_size=512,
            crop_scale=(1.0, 1.0),
            # The paper captions the LR image; the released code the HR image. Captions of degraded versions come from
            # --images.lr-captions; where the photograph alone has one, that one is used.
            high_caption_from="lr",
            # No captioner sees an LR image that is drawn in training, so the drawn degradation is put in words.
            low_caption_from="drawn",
            # The paper trains with the high-level caption. The released code always has the empty string in its place.
            high_dropout=0.0,
            caption_dropout=0.0,
            low_dropout=0.0,
            # The paper has no clean inputs. The released code shows the HR image itself in a tenth of the samples.
            clean_input_probability=0.0,
            # The released code's degradation. It also sharpens the target, of which the paper does not speak; to leave
            # that out: --data.degradation.no-sharpen.
            degradation=XPSR,
        ),
        # networks.base brings the UNet, the autoencoder, the text encoder, the tokenizer and the noise schedule. The
        # ControlNet begins as a copy of the UNet, the Conditional Attention at random (method §5).
        networks=Networks(base=(Path("models/stable-diffusion-v1-5"),), from_scratch=("controlnet",)),
        loss=Loss(constraint=0.05),
        # 5e-5, constant; the rest is the released code's.
        optimizer=Optimizer(learning_rate=5e-5, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=1e-2, clip=1.0),
        # The released code computes in float16 with loss scaling; bfloat16 needs none.
        precision=Precision(dtype="bfloat16", frozen_dtype="bfloat16", remat=True),
        mesh=Mesh(data=1, fsdp=-1),
        validation=Validation(every=5000, sampling=PAPER),
        sampling=PAPER,
        checkpoint_every=5000,
    )
