"""Settings of sampling and training, as frozen dataclasses.

`configs/*.py` create them, and command lines override single fields.
"""

from xpsr_jax.config.few_step import FewStep
from xpsr_jax.config.field_types import ProcessMode
from xpsr_jax.config.files import load_config
from xpsr_jax.config.sampling import FAST, FEW_STEP, PAPER, RELEASED, SAMPLING_PRESETS, PresetName, Sampling
from xpsr_jax.config.training import (
    Config,
    Images,
    Loss,
    Mesh,
    Networks,
    Optimizer,
    Precision,
    Validation,
    ValidationMetric,
)

__all__ = [
    "FAST",
    "FEW_STEP",
    "PAPER",
    "RELEASED",
    "SAMPLING_PRESETS",
    "Config",
    "FewStep",
    "Images",
    "Loss",
    "Mesh",
    "Networks",
    "Optimizer",
    "Precision",
    "PresetName",
    "ProcessMode",
    "Sampling",
    "Validation",
    "ValidationMetric",
    "load_config",
]
