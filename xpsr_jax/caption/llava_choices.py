"""Choices for LLaVA on the command line. Nothing here imports PyTorch or JAX."""

from typing import Literal

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"

LlavaDtype = Literal["auto", "bfloat16", "float16", "float32"]
"""Number format; auto: bfloat16 or float16 on a GPU, float32 on a CPU."""

LlavaTemplate = Literal["released", "model"]
"""How an instruction becomes a prompt: as in the released code, or by the model's chat template."""
