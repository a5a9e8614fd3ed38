"""XPSR on Stable Diffusion 1.5, trained as in the paper. Where the paper does not say, it follows the released code.

    xpsr train --config xpsr --networks.base STABLE_DIFFUSION --images.folder PHOTOS

STABLE_DIFFUSION is Stable Diffusion 1.5 in diffusers' layout. PHOTOS has images of at least 512 x 512 pixels, also in
subfolders, and captions.jsonl. configs/xpsr_released.py differs in fields that are explained here
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
        # The whole ControlNet, and the Conditional Attention in the UNet: 868 million parameters.
        trained=((r"controlnet\..*", True), (r"unet\..*\.pixel_attentions\..*", True)),
        # In the paper, LLaVA writes both captions of captions.jsonl. In its code, Q-Instruct writes the low-level ones.
        images=Images(folder=Path("data/train")),
        data=DataConfig(
            crop_size=512,
            crop_scale=(1.0, 1.0),
            # The paper captions the LR image, the released code the HR image. Captions of degraded versions come from
            # --images.lr-captions. If only the photograph has a caption, that one is used.
            high_caption_from="lr",
            # LR images are generated during training, without a captioner. Their random degradation is put into words.
            low_caption_from="drawn",
            # The paper trains with the high-level caption. The released code always uses the empty string instead.
            high_dropout=0.0,
            caption_dropout=0.0,
            low_dropout=0.0,
            # The paper has no clean inputs. The released code uses the HR image itself in a tenth of the samples.
            clean_input_probability=0.0,
            # The released code's degradation. It also sharpens the target, which the paper does not mention. To turn
            # that off: --data.degradation.no-sharpen.
            degradation=XPSR,
        ),
        # networks.base has the UNet, the autoencoder, the text encoder, the tokenizer and the noise schedule. The
        # ControlNet is initialised as a copy of the UNet, the Conditional Attention at random (method §5).
        networks=Networks(base=(Path("models/stable-diffusion-v1-5"),), from_scratch=("controlnet",)),
        loss=Loss(constraint=0.05),
        # The learning rate is constant. The other values are the released code's.
        optimizer=Optimizer(learning_rate=5e-5, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=1e-2, clip=1.0),
        # The released code computes in float16 with loss scaling; bfloat16 needs none. Two images on a chip take 10 of
        # a v5e's 16 GB. For more images, or less memory: --precision.remat (docs/understand/pods.md).
        precision=Precision(dtype="bfloat16", frozen_dtype="bfloat16", remat=False),
        mesh=Mesh(data=1, fsdp=-1),
        validation=Validation(every=5000, sampling=PAPER),
        sampling=PAPER,
        checkpoint_every=5000,
    )
