"""XPSR on Stable Diffusion 1.5, trained like the released code (docs/understand/method.md §6), with its empty prompt.

    xpsr train --config xpsr_released --networks.base STABLE_DIFFUSION --images.folder PHOTOS

The folders are the same as for `configs/xpsr.py`. Fields that are not set here have the values of that config.
"""

import dataclasses
import math
from pathlib import Path

from xpsr_jax.config import RELEASED, Config, load_config

VARIANTS = ("default",)

# Number of pairs in the released training set, from a comment in the released code.
_PAIRS = 1_153_649


def config(variant: str = "default") -> Config:
    paper = load_config(str(Path(__file__).with_name("xpsr.py")))
    return dataclasses.replace(
        paper,
        name="xpsr_released",
        # 12 epochs: 432,624 steps. The released test script uses the checkpoint of step 300,000.
        steps=12 * math.ceil(_PAIRS / paper.batch_size),
        data=dataclasses.replace(
            paper.data,
            # The caption of the HR image. The LR image's caption is used only if there is no other.
            high_caption_from="hr",
            # The networks never get it in training: the released dataset class replaces it by the tokens of the empty
            # string. The released weights depend on that. Sampling nevertheless uses the caption.
            high_dropout=1.0,
            # In a tenth of the samples, the LR image is the HR image itself, and the low-level caption describes its
            # good quality.
            clean_input_probability=0.1,
        ),
        validation=dataclasses.replace(paper.validation, every=50_000, sampling=RELEASED),
        sampling=RELEASED,
    )
