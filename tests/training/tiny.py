"""A very fast training: the smallest possible networks, 64-pixel crops, generated photographs.

Also a config file: `python train.py --config tests/training/tiny.py`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from xpsr_jax import sharding
from xpsr_jax.config import (
    FEW_STEP,
    Config,
    FewStep,
    Images,
    Loss,
    Mesh,
    Networks,
    Optimizer,
    Precision,
    Sampling,
    Validation,
)
from xpsr_jax.data.captions import Caption, write_captions
from xpsr_jax.data.config import DataConfig
from xpsr_jax.models.configs import AutoencoderConfig, ControlNetConfig, TextEncoderConfig, UNetConfig
from xpsr_jax.training.plan import make_plan
from xpsr_jax.training.state import initial_state

VARIANTS = ("default", "autoencoder", "decoder", "few_step", "adversarial")
SIZE = 64

# One level: attention in the mid block, Conditional Attention in the decoder. More levels would only compile longer.
UNET = UNetConfig(
    block_out_channels=(8,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    cross_attention_dim=8,
    attention_head_dim=2,
    norm_num_groups=4,
)
NETWORKS = Networks(
    from_scratch=("unet", "controlnet", "autoencoder", "text_encoder"),
    unet=UNET,
    controlnet=ControlNetConfig.like_unet(UNET, conditioning_embedding_out_channels=(4, 4, 8)),
    autoencoder=AutoencoderConfig(
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
    ),
    text_encoder=TextEncoderConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2),
)
# Only a part of each kind, because many parameters make the step slow to compile and checkpoints slow to save.
TRAINED = (
    (r"controlnet\.mid_block\.attentions_connect\.0\.transformer_blocks.*", True),
    (r"controlnet\.(conv_degradation_mid|controlnet_cond_embedding\.to_rgbs\.0|controlnet_down_blocks\.0)\..*", True),
    (r"unet\.up_blocks\.0\.pixel_attentions\.1\.transformer_blocks.*", True),
)


def config(variant: str = "default") -> Config:
    sampling = Sampling(steps=2, guidance_scale=1.5, process_size=SIZE)
    default = Config(
        name="test",
        steps=6,
        batch_size=8,
        trained=TRAINED,
        data=DataConfig(crop_size=SIZE, caption_dropout=0.1),
        networks=NETWORKS,
        optimizer=Optimizer(learning_rate=1e-3, ema=0.9),
        precision=Precision(dtype="float32", frozen_dtype="float32", remat=False),
        mesh=Mesh(data=-1, fsdp=1),
        validation=Validation(every=0, count=1, sampling=sampling),
        sampling=sampling,
        note="It is a test's.",
        log_every=1,
        checkpoint_every=2,
    )
    autoencoder = dataclasses.replace(
        default,
        name="test_autoencoder",
        stage="autoencoder",
        trained=((r"autoencoder\..*", True),),
        data=DataConfig(crop_size=SIZE, degrade=False),
        loss=Loss(metric="lpips_alex"),
    )
    decoder = dataclasses.replace(
        default,
        name="test_decoder",
        stage="decoder",
        trained=((r"autoencoder\.decoder\..*", True),),
        loss=Loss(constraint=0.0, metric="lpips_alex"),
        mesh=Mesh(data=1, fsdp=1),
    )
    if variant in ("default", "autoencoder", "decoder"):
        return {"default": default, "autoencoder": autoencoder, "decoder": decoder}[variant]
    few_step = FewStep(
        rank=2,
        adapted=((r"unet\.mid_block\.attentions\.0\..*\.to_q\.kernel", True), (r"unet\.conv_out\.kernel", True)),
        realism="distribution" if variant == "few_step" else "adversarial",
        decoded=8,
    )
    return dataclasses.replace(
        default,
        name=f"test_{variant}",
        stage="few_step",
        loss=Loss(metric="lpips_alex"),
        few_step=few_step,
        sampling=dataclasses.replace(FEW_STEP, process_size=SIZE),
    )


def make_photos(folder: Path, count: int = 5) -> Images:
    """Smooth coloured pictures of 80 x 96 pixels, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(count)]
    for name in names:
        coarse = rng.integers(0, 256, (10, 12, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(coarse, (96, 80), interpolation=cv2.INTER_CUBIC))
    write_captions(folder / "captions.jsonl", {name: Caption(f"picture {name}", "clear") for name in names})
    return Images(folder=folder)


def random_parameter(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random parameter that depends only on its path, the same in every run and process."""
    values = np.random.default_rng(list(path.encode())).standard_normal(shape, np.float32)
    if path.endswith(".scale"):
        return 1 + 0.1 * values
    return values / np.sqrt(max(1, np.prod(shape[:-1])), dtype=np.float32)


class Run:
    """A training to execute step by step, with the same parts as `training.loop.train`.

    All parameters are random, even those that normally start at zero, so that each one has an effect.
    """

    def __init__(self, config: Config, devices: int | None = None):
        self.config = config
        self.mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
        plan = make_plan(config, self.mesh)
        self.structure, self.optimizer, self.abstract, self.step = plan.structure, plan.optimizer, plan.state, plan.step
        parameters = {
            path: sharding.place(random_parameter(path, shape.shape), plan.shardings[path], np.float32)
            for path, shape in self.structure.shapes().items()
        }
        self.frozen = {path: parameters[path] for path in self.structure.frozen}
        trained = {path: parameters[path] for path in self.structure.trained}
        self.state = initial_state(config, self.optimizer, trained, self.abstract)

    def advance(self, batch: dict[str, np.ndarray], constants: Any = None) -> dict[str, float]:
        """Runs one step and returns its terms."""
        batch = {name: array for name, array in batch.items() if name != "index"}
        batch = sharding.shard_batch(batch, self.mesh)
        self.state, terms = self.step(self.state, self.frozen, constants, batch)
        return {name: float(value) for name, value in terms.items()}
