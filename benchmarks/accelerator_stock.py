"""Times the stock UNet of Stable Diffusion 1.5 for benchmarks/accelerator.py: ours and PyTorch's, in turn."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from flax import nnx

from benchmarks.accelerator_programs import RNG, Sizes, filled, seconds_of
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.unet import UNet

ROUNDS = 3


def stock(sizes: Sizes) -> dict[str, float]:
    """Seconds of the forward pass of two samples in bfloat16, by name: the smallest of the rounds' medians."""
    config = sizes.config.networks.unet
    config = type(config)(**{**vars(config), "conditional_attention": False})
    side = sizes.config.data.crop_size // 8
    latents = RNG.standard_normal((2, side, side, config.in_channels), np.float32)
    text = RNG.standard_normal((2, 77, config.cross_attention_dim), np.float32)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    theirs = UNet2DConditionModel(  # type: ignore[attr-defined, unused-ignore]
        sample_size=side,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=config.down_block_types,
        up_block_types=config.up_block_types,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
    )
    theirs = theirs.eval().to(device, torch.bfloat16, memory_format=torch.channels_last)
    inputs = (
        torch.from_numpy(latents).permute(0, 3, 1, 2).to(device, torch.bfloat16),
        torch.tensor(500, device=device),
        torch.from_numpy(text).to(device, torch.bfloat16),
    )

    def run_theirs() -> None:
        with torch.no_grad():
            theirs(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()

    compute = Compute(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    graph, weights = nnx.split(nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0), compute=compute)))
    weights = filled(weights)
    arrays = jnp.asarray(latents), jnp.full(2, 500), jnp.asarray(text, jnp.bfloat16)
    forward = jax.jit(lambda weights, *inputs: nnx.merge(graph, weights)(*inputs))

    def run_ours() -> None:
        jax.block_until_ready(forward(weights, *arrays))

    turns = {"stock UNet, ours": run_ours, f"stock UNet, PyTorch ({device.type})": run_theirs}
    found = {name: float("inf") for name in turns}
    for _ in range(ROUNDS):
        for name, run in turns.items():
            found[name] = min(found[name], seconds_of(run, least=0.3))
    return found
