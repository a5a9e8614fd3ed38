"""XPSR on Stable Diffusion 1.5, trained as its released code trains it, the empty prompt and all
(docs/understand/method.md §6).

    xpsr train --config xpsr_released --networks.base STABLE_DIFFUSION --images.folder PHOTOS

The folders are those of `configs/xpsr.py`, and so is every field that is not set here.
"""

import dataclasses
import math
from pathlib import Path

from xpsr_jax.config import RELEASED, Config, load_config

VARIANTS = ("default",)

# Of the released training set, by a comment in the released code.
_PAIRS = 1_153_649


def config(variant: str = "default") -> Config:
    paper = load_config(str(Path(__file__).with_name("xpsr.py")))
    return dataclasses.replace(
        paper,
        name="xpsr_released",
        # 12 epochs: 432,624 steps. The released test used the checkpoint of step 300,000.
        steps=12 * math.ceil(_PAIRS / paper.batch_size),
        data=dataclasses.replace(
            paper.data,
            # The caption of the HR image, the LR image's only for want of it.
            high_caption_from="hr",
            # And yet the networks never see it: the released dataset class puts the tokens of the empty string in its
            # place. Released weights depend on that; sampling still gives them the caption.
            high_dropout=1.0,
            # A tenth of the samples has the HR image itself as LR image, and a low-level caption of its good quality.
            clean_input_probability=0.1,
        ),
        validation=dataclasses.replace(paper.validation, every=50_000, sampling=RELEASED),
        sampling=RELEASED,
    )
