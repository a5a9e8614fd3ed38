"""XPSR on Stable Diffusion 2.1: the training of `configs/xpsr.py` at 768 pixels, with v-prediction.

    xpsr train --config sd21 --networks.base STABLE_DIFFUSION_2_1 --images.folder PHOTOS

The base is Stable Diffusion 2.1 in diffusers' layout (the 768-pixel version). Its config files contain the differences
from 1.5: the text encoder of OpenCLIP's ViT-H, one attention head for every 64 channels, linear projections,
v-prediction. The networks are also described below, because the ControlNet's configuration is derived from the UNet's.

    xpsr train --config sd21:tiny --images.folder ANY_PHOTOS

The variant "tiny" has the same kind of networks in a size for two CPU cores, with random weights. It tests the whole
workflow, from training to a model folder, with any folder of photographs. The model cannot restore images.
"""

import dataclasses
from pathlib import Path

from xpsr_jax.config import PAPER, Config, Images, Mesh, Networks, Precision, Validation, load_config
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.models.configs import AutoencoderConfig, ControlNetConfig, TextEncoderConfig, UNetConfig

VARIANTS = ("default", "tiny")

SIZE = 768
# All layers except the last of OpenCLIP ViT-H/14, which has 24.
TEXT_ENCODER = TextEncoderConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
)
UNET = UNetConfig(
    cross_attention_dim=TEXT_ENCODER.hidden_size,
    attention_head_dim=(5, 10, 20, 20),
    use_linear_projection=True,
    upcast_attention=True,
    sample_size=SIZE // 8,
)
SCHEDULE = Schedule(prediction_type="v_prediction")


def config(variant: str = "default") -> Config:
    if variant == "tiny":
        return _tiny()
    paper = load_config(str(Path(__file__).with_name("xpsr.py")))
    # The networks get an enlarged photograph of at least 768 pixels, as in training.
    sampling = dataclasses.replace(PAPER, process_size=SIZE)
    return dataclasses.replace(
        paper,
        name="sd21",
        data=dataclasses.replace(paper.data, crop_size=SIZE),
        networks=Networks(
            base=(Path("models/stable-diffusion-2-1"),),
            from_scratch=("controlnet",),
            unet=UNET,
            controlnet=ControlNetConfig.like_unet(UNET),
            autoencoder=AutoencoderConfig(sample_size=SIZE),
            text_encoder=TEXT_ENCODER,
            schedule=SCHEDULE,
        ),
        validation=dataclasses.replace(paper.validation, sampling=sampling),
        sampling=sampling,
    )


def _tiny() -> Config:
    default = config()
    text_encoder = dataclasses.replace(
        TEXT_ENCODER, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    unet = dataclasses.replace(
        UNET,
        block_out_channels=(8, 16),
        # Only the mid block reads the captions: more attention would mostly take longer to compile.
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=text_encoder.hidden_size,
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        sample_size=16,
    )
    sampling = dataclasses.replace(PAPER, steps=2, process_size=64)
    return dataclasses.replace(
        default,
        name="sd21_tiny",
        steps=100,
        batch_size=8,
        images=Images(folder=Path("photos"), missing_captions="empty"),
        data=dataclasses.replace(default.data, crop_size=64),
        networks=Networks(
            from_scratch=("unet", "controlnet", "autoencoder", "text_encoder"),
            unet=unet,
            controlnet=ControlNetConfig.like_unet(unet, conditioning_embedding_out_channels=(4, 8, 8)),
            autoencoder=AutoencoderConfig(
                block_out_channels=(8, 8, 8),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                layers_per_block=1,
                norm_num_groups=1,
                sample_size=64,
            ),
            text_encoder=text_encoder,
            schedule=SCHEDULE,
        ),
        precision=Precision(dtype="float32", frozen_dtype="float32", remat=False),
        mesh=Mesh(data=-1, fsdp=1),
        validation=Validation(every=50, count=1, sampling=sampling),
        sampling=sampling,
        note="A test of networks like Stable Diffusion 2.1's, with random weights: it cannot restore images.",
        checkpoint_every=50,
    )
