"""A user's own config file of version 0.1: python train.py --config config.py"""

from pathlib import Path

from xpsr_jax.config import Config, Images, Loss, Mesh, Networks, Optimizer, Precision, Sampling, Validation
from xpsr_jax.data.examples import DataConfig
from xpsr_jax.models.autoencoder import AutoencoderConfig
from xpsr_jax.models.controlnet import ControlNetConfig
from xpsr_jax.models.text_encoder import TextEncoderConfig
from xpsr_jax.models.unet import UNetConfig

VARIANTS = ("default", "autoencoder")
SIZE = 32

UNET = UNetConfig(
    block_out_channels=(4,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    cross_attention_dim=4,
    attention_head_dim=2,
    norm_num_groups=2,
)
AUTOENCODER = AutoencoderConfig(
    block_out_channels=(4, 4, 4),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=1,
    norm_num_groups=2,
)
# As many tokens as base/tokenizer has.
TEXT_ENCODER = TextEncoderConfig(
    vocab_size=514, hidden_size=4, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
)
TRAINED = (
    (r"controlnet\.mid_block\.attentions_connect\.0\.transformer_blocks.*", True),
    (r"controlnet\.(conv_degradation_mid|controlnet_cond_embedding\.to_rgbs\.0|controlnet_down_blocks\.0)\..*", True),
    (r"unet\.up_blocks\.0\.pixel_attentions\.1\.transformer_blocks.*", True),
)


def config(variant: str = "default") -> Config:
    sampling = Sampling(steps=2, guidance_scale=1.5, process_size=SIZE)
    common = dict(
        name=variant,
        batch_size=8,
        images=Images(folder=Path("photos"), lr_captions=Path("lr_captions.jsonl")),
        precision=Precision(dtype="float32", frozen_dtype="float32", remat=False),
        mesh=Mesh(data=-1, fsdp=1),
        validation=Validation(every=0, count=1, sampling=sampling),
        sampling=sampling,
        note="Made by version 0.1.",
    )
    if variant == "autoencoder":
        return Config(
            stage="autoencoder",
            steps=2,
            trained=((r"autoencoder\.(quant_conv|decoder\.conv_out)\..*", True),),
            data=DataConfig(crop_size=SIZE, degrade=False),
            networks=Networks(from_scratch=("autoencoder",), autoencoder=AUTOENCODER),
            loss=Loss(metric="lpips_alex"),
            optimizer=Optimizer(learning_rate=1e-3),
            log_every=1,
            checkpoint_every=100,
            **common,
        )
    return Config(
        steps=6,
        trained=TRAINED,
        data=DataConfig(crop_size=SIZE, caption_dropout=0.1),
        networks=Networks(
            base=(Path("base"),),
            from_scratch=("controlnet",),
            controlnet=ControlNetConfig.like_unet(UNET, conditioning_embedding_out_channels=(4, 4, 4)),
        ),
        optimizer=Optimizer(learning_rate=1e-3, ema=0.9),
        log_every=2,
        checkpoint_every=100,
        **common,
    )
