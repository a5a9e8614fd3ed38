"""A student with one, two or four evaluations and without guidance, trained from a trained XPSR.

    xpsr train --config few_step --networks.base XPSR --images.folder PHOTOS

XPSR is a complete model folder: it is the guided teacher, and the student's initial weights. PHOTOS has images and
captions.jsonl. Trained are the ControlNet, the Conditional Attention, and low-rank adapters of the UNet's attention
and convolutions. The export merges the adapters into the kernels.

    xpsr train --config few_step:tiny --images.folder PAIRS

"tiny" trains a student of the small model that configs/tiny.py trains before its last stage, on the same pairs and on
two CPU cores. Here it starts from noise.
"""

import dataclasses
from pathlib import Path

from xpsr_jax.config import FEW_STEP, Config, FewStep, Loss, Mesh, Networks, Precision, Validation, load_config

VARIANTS = ("default", "tiny", "tiny_adversarial")


def config(variant: str = "default") -> Config:
    paper = load_config(str(Path(__file__).with_name("xpsr.py")))
    default = dataclasses.replace(
        paper,
        name="few_step",
        stage="few_step",
        steps=20_000,
        batch_size=16,
        networks=Networks(base=(Path("models/xpsr"),), from_scratch=()),
        loss=Loss(constraint=0.05, reconstruction=1.0, perceptual=1.0, metric="lpips_vgg"),
        # A square of 256 of the crop's 512 pixels is decoded and compared: the decoder has the largest activations.
        few_step=FewStep(decoded=32),
        optimizer=dataclasses.replace(paper.optimizer, learning_rate=5e-5, warmup=200, ema=0.999),
        validation=Validation(every=1000, sampling=FEW_STEP),
        sampling=FEW_STEP,
        checkpoint_every=1000,
        note="A student with few evaluations: use --steps 1, 2 or 4.",
    )
    if variant == "default":
        return default
    sampling = dataclasses.replace(FEW_STEP, color_fix="wavelet", process_size=128)
    tiny = load_config(str(Path(__file__).with_name("tiny.py")))
    whole = dataclasses.replace(
        default,
        name="few_step_tiny",
        steps=400,
        batch_size=4,
        # The photographs that its teacher never saw are held out.
        images=tiny.images,
        data=dataclasses.replace(tiny.data, caption_dropout=0.0, negative_target_probability=0.0),
        networks=Networks(base=(tiny.run_folder / "model",), from_scratch=()),
        loss=Loss(constraint=0.05, reconstruction=1.0, perceptual=1.0, metric="dists", patch=64),
        few_step=FewStep(rank=16, guidance_scale=0.5, critic_learning_rate=2e-4, realism_weight=0.1, decoded=8),
        optimizer=dataclasses.replace(tiny.optimizer, learning_rate=3e-4, warmup=50, ema=0.99),
        precision=Precision(dtype="float32", frozen_dtype="float32", remat=False),
        mesh=Mesh(data=-1, fsdp=1),
        validation=Validation(every=400, sampling=sampling),
        sampling=sampling,
        checkpoint_every=100,
        note="A student of the small model, with few evaluations: use --steps 1, 2 or 4.",
    )
    if variant == "tiny":
        return whole
    return dataclasses.replace(
        whole,
        name="few_step_tiny_adversarial",
        few_step=dataclasses.replace(whole.few_step, realism="adversarial", realism_weight=0.02),
    )
