"""Makes tests/vectors/sd21_small: XPSR on a small Stable Diffusion 2.1, from PyTorch diffusers' own modules.

The released code supports only Stable Diffusion 1.5. So XPSR is built here from its description
(docs/understand/method.md §3, §4): diffusers' stock ControlNet and UNet, with diffusers' transformers added where
XPSR has some. Run manually, with the versions in make_stock_vectors.py:

    python tests/vectors/make_sd21_vectors.py
"""

import re
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the next line, when run as a script
from tests.vectors.make_stock_vectors import SD21, SD21_UP, Io, draw, normal, write_component, write_io

HERE = Path(__file__).parent / "sd21_small"
EMBEDDING = (4, 6, 8, 10)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def transformer(config: Any, level: int, context: int) -> Transformer2DModel:
    """A transformer with the settings of the network and the heads of its level; the context has `context` channels."""
    width, heads = config.block_out_channels[level], config.attention_head_dim[level]
    return Transformer2DModel(
        heads,
        width // heads,
        in_channels=width,
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=context,
        use_linear_projection=config.use_linear_projection,
        upcast_attention=config.upcast_attention,
    )


class SemanticFusionAttention(nn.Module):
    """Replaces a transformer (method §3). Its text is both captions' embeddings, concatenated."""

    def __init__(self, high: Transformer2DModel, low: Transformer2DModel, connect: Transformer2DModel):
        super().__init__()
        self.high, self.low, self.connect = high, low, connect

    def forward(self, x: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        of_high, of_low = encoder_hidden_states.chunk(2, dim=1)
        high, low = self.high(x, of_high).sample, self.low(x, of_low).sample
        return (self.connect(high, tokens(low)).sample,)


class ThenAttend(nn.Module):
    """Replaces the last module of a decoder layer: the module, then Conditional Attention to `residual` (method §4)."""

    def __init__(self, layer: nn.Module, attend: Transformer2DModel):
        super().__init__()
        self.layer, self.attend = layer, attend
        self.residual: Tensor

    def forward(self, *args: Any, **options: Any) -> Tensor | tuple[Tensor]:
        out = self.layer(*args, **options)
        x = self.attend(out[0] if isinstance(out, tuple) else out, tokens(self.residual)).sample
        return (x,) if isinstance(out, tuple) else x


def xpsr_controlnet(config: dict[str, Any]) -> ControlNetModel:
    model = ControlNetModel(**config)
    last = len(model.config.block_out_channels) - 1
    for level, block in [*enumerate(model.down_blocks), (last, model.mid_block)]:
        attentions = getattr(block, "attentions", ())
        for i, high in enumerate(attentions):
            low = transformer(model.config, level, model.config.cross_attention_dim)
            connect = transformer(model.config, level, model.config.block_out_channels[level])
            attentions[i] = SemanticFusionAttention(high, low, connect)
    return model


def xpsr_unet(config: dict[str, Any]) -> UNet2DConditionModel:
    model = UNet2DConditionModel(**config)
    widths = model.config.block_out_channels
    residuals = [widths[0]]
    for level, width in enumerate(widths):
        residuals += [width] * (model.config.layers_per_block + (level < len(widths) - 1))
    for i, block in enumerate(model.up_blocks):
        layers = getattr(block, "attentions", block.resnets)
        for j, layer in enumerate(layers):
            layers[j] = ThenAttend(layer, transformer(model.config, len(widths) - 1 - i, residuals.pop()))
    return model


def run(controlnet: ControlNetModel, unet: UNet2DConditionModel, generator: torch.Generator, size: tuple) -> Io:
    """Random inputs, and the outputs of both networks."""
    b, _, h, w = size
    x, t, scale = normal(generator, *size), torch.tensor([901, 33])[:b], 0.9
    high, low = (normal(generator, b, 9, unet.config.cross_attention_dim) for _ in range(2))
    factor = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
    image = torch.rand((b, 3, h * factor, w * factor), generator=generator).half().double()
    residuals, mid = controlnet(x, t, torch.cat([high, low], dim=1), image, conditioning_scale=scale, return_dict=False)
    remaining = list(residuals)
    for block in unet.up_blocks:
        for layer in getattr(block, "attentions", block.resnets):
            layer.residual = remaining.pop()
    prediction = unet(x, t, high, down_block_additional_residuals=residuals, mid_block_additional_residual=mid).sample
    inputs = {"in.latents": x, "in.timesteps": t, "in.high": high, "in.low": low, "in.image": image}
    inputs["in.scale"] = torch.tensor(scale)
    outputs = {f"out.residuals.{i}": residual for i, residual in enumerate(residuals)}
    return inputs | outputs | {"out.mid": mid, "out.prediction": prediction}


def released_key(key: str) -> str:
    """The released code's key for a key of these modules (method §5)."""
    key = re.sub(r"attentions\.(\d+)\.high\.", r"attentions.\1.", key)
    key = re.sub(r"attentions\.(\d+)\.low\.", r"attentions_lowlevel.\1.", key)
    key = re.sub(r"attentions\.(\d+)\.connect\.", r"attentions_connect.\1.", key)
    key = re.sub(r"(attentions|resnets)\.(\d+)\.attend\.", r"pixel_attentions.\2.", key)
    return key.replace(".layer.", ".")


def make(size: tuple, seed: int, **changes: Any) -> tuple[ControlNetModel, UNet2DConditionModel, Io]:
    generator = torch.Generator().manual_seed(seed)
    controlnet = xpsr_controlnet(SD21 | changes | {"conditioning_embedding_out_channels": EMBEDDING})
    unet = xpsr_unet(SD21 | SD21_UP | changes)
    draw(controlnet, generator)
    draw(unet, generator)
    with torch.no_grad():
        return controlnet, unet, run(controlnet, unet, generator, size)


def main() -> None:
    # A seed with well-conditioned networks. At the worst of 24 other seeds, PyTorch's own float32 error is 2e-4.
    controlnet, unet, io = make((2, 4, 8, 12), seed=14)
    write_component(controlnet, HERE / "controlnet", released_key)
    write_component(unet, HERE / "unet", released_key)
    write_io(io, HERE / "io.safetensors")
    print({key: f"{value.pow(2).mean().sqrt():.2f}" for key, value in io.items() if key.startswith("out.")})


if __name__ == "__main__":
    main()
