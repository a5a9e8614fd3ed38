"""A small XPSR for two CPU cores, trained from nothing on a folder of photographs.

There is no pretrained Stable Diffusion, so everything trains. PHOTOS holds images and captions.jsonl.

    xpsr train --config tiny:autoencoder --images.folder PHOTOS
    xpsr train --config tiny --images.folder PHOTOS
    xpsr train --config tiny:decoder --images.folder PHOTOS
    xpsr convert runs/tiny_decoder/model --output tiny --dtype float16

Each begins from what the one before exported. The decoder is trained on because a diffusion this small leaves errors
in its latents: the decoder learns to make the best of them.
"""

import dataclasses
from pathlib import Path

from xpsr_jax.config import Config, Images, Loss, Mesh, Networks, Optimizer, Precision, Sampling, Validation
from xpsr_jax.data.config import DataConfig
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.models.configs import AutoencoderConfig, ControlNetConfig, TextEncoderConfig, UNetConfig

VARIANTS = ("default", "autoencoder", "decoder")

# Photographs that training never sees.
HELD_OUT = (
    "lomiri_Kleiber_by_Lukas_Baubkus.jpg",
    "lomiri_Bridge_by_Sander_Klootwijk.jpg",
    "mate_LadyBird.jpg",
    "mate_YellowFlower.jpg",
    "opencv_board.jpg",
    "opencv_fruits.jpg",
    "plasma_ColorfulCups.jpg",
    "plasma_FallenLeaf.jpg",
)

LATENT_CHANNELS = 12
AUTOENCODER = AutoencoderConfig(
    latent_channels=LATENT_CHANNELS,
    block_out_channels=(16, 32, 64, 96),
    layers_per_block=1,
    # Groups of two channels would take each image's own brightness and contrast away.
    norm_num_groups=1,
    sample_size=64,
    scaling_factor=1.0,
)
TEXT_ENCODER = TextEncoderConfig(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
UNET = UNetConfig(
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    block_out_channels=(48, 96, 96),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=TEXT_ENCODER.hidden_size,
    attention_head_dim=(1, 2, 2),
    norm_num_groups=8,
)
CONTROLNET = ControlNetConfig.like_unet(UNET, conditioning_embedding_out_channels=(16, 32, 48, 64))
# The velocity, because a network of this size predicts the noise badly where there is nearly nothing but noise.
SCHEDULE = Schedule(prediction_type="v_prediction")

NEGATIVE_WORDS = ("blurry", "dotted", "noise", "unclear", "low-res", "over-smoothed")
# Measured on 8 held-out crops: guidance gains nothing at this size (DISTS 0.83 of bicubic's without, 0.86 at 0.5).
SAMPLING = Sampling(steps=4, guidance_scale=0.0, color_fix="wavelet", process_size=128)
NOTE = "A small model that knows 42 photographs: it shows how XPSR works and is no match for a model of full size."


def config(variant: str = "default") -> Config:
    images = Images(folder=Path("photos"), exclude=HELD_OUT, missing_exclusions="ignore", cache=True)
    cpu = Precision(dtype="float32", frozen_dtype="float32", remat=False)
    autoencoder = Config(
        name="tiny_autoencoder",
        stage="autoencoder",
        steps=3000,
        batch_size=8,
        trained=((r"autoencoder\..*", True),),
        images=images,
        data=DataConfig(crop_size=64, crop_scale=(0.6, 1.0), degrade=False),
        networks=Networks(from_scratch=("autoencoder",), autoencoder=AUTOENCODER),
        loss=Loss(reconstruction=1.0, perceptual=0.5, kl=1e-3, metric="lpips_alex"),
        optimizer=Optimizer(learning_rate=1e-3, b2=0.99, schedule="cosine", warmup=100, ema=0.998),
        precision=cpu,
        mesh=Mesh(data=-1, fsdp=1),
        validation=Validation(every=500),
        checkpoint_every=500,
    )
    xpsr = Config(
        name="tiny",
        steps=8100,
        batch_size=8,
        trained=((r"(controlnet|unet|text_encoder)\..*", True),),
        images=images,
        data=DataConfig(
            crop_size=128,
            crop_scale=(0.5, 1.0),
            caption_dropout=0.1,
            clean_input_probability=0.05,
            negative_target_probability=0.1,
            negative_words=NEGATIVE_WORDS,
        ),
        networks=Networks(
            base=(autoencoder.run_folder / "model",),
            from_scratch=("unet", "controlnet", "text_encoder"),
            unet=UNET,
            controlnet=CONTROLNET,
            text_encoder=TEXT_ENCODER,
            schedule=SCHEDULE,
        ),
        optimizer=Optimizer(learning_rate=8e-4, b2=0.99, schedule="cosine", warmup=200, ema=0.999),
        precision=cpu,
        mesh=Mesh(data=-1, fsdp=1),
        validation=Validation(every=1500, sampling=SAMPLING),
        sampling=SAMPLING,
        note=NOTE,
        checkpoint_every=500,
    )
    decoder = dataclasses.replace(
        xpsr,
        name="tiny_decoder",
        stage="decoder",
        steps=900,
        batch_size=4,
        trained=((r"autoencoder\.(decoder|post_quant_conv)\..*", True),),
        # Its targets are never degraded.
        data=dataclasses.replace(xpsr.data, negative_target_probability=0.0),
        networks=Networks(base=(xpsr.run_folder / "model",)),
        loss=Loss(reconstruction=1.0, perceptual=1.0, metric="dists", patch=64),
        optimizer=dataclasses.replace(autoencoder.optimizer, learning_rate=5e-4, warmup=50),
        validation=Validation(every=500, sampling=SAMPLING),
    )
    return {"default": xpsr, "autoencoder": autoencoder, "decoder": decoder}[variant]
