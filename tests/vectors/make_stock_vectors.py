"""Makes tests/vectors/stock: small random networks of PyTorch diffusers and transformers, with inputs and outputs.

Run manually, only to add a network, in an environment with torch. The tests only read the result and do not need
torch. It was run with torch 2.13.0 (CPU), diffusers 0.42.1, transformers 5.23.0, safetensors 0.8.0, numpy 2.4.6:

    python tests/vectors/make_stock_vectors.py [NAME ...]

Each network has a folder NAME/ like a component of a Stable Diffusion folder (config.json and weights), and in it
io.safetensors (`in.*`, `out.*`; PyTorch's layout). Random weights and inputs are rounded to float16, so float16 stores
them exactly at half the size. Outputs are computed in float64, so that a test measures only our rounding and not
PyTorch's.
"""

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

HERE = Path(__file__).parent / "stock"
Io = dict[str, Tensor]


def draw(module: nn.Module, generator: torch.Generator) -> None:
    """Gives every parameter a random value, even those that start at zero or one, so that each one has an effect."""
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "embedding.weight" in name:  # of tokens and positions
            value = 0.5 * noise
        elif parameter.ndim >= 2:
            sharp = name.endswith(("to_q.weight", "to_k.weight", "q_proj.weight", "k_proj.weight"))
            gain = 1.5 if sharp else 1.0  # attention far from uniform
            value = gain * noise / parameter[0].numel() ** 0.5
        elif name.endswith("weight"):  # of a norm
            value = 1 + 0.3 * noise
        else:
            value = 0.2 * noise
        parameter.data.copy_(value.half())
    module.double()


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).half().double()


def unet(config: dict[str, Any], latents: tuple[int, ...], timesteps: list[int], tokens: int) -> Callable:
    def make(generator: torch.Generator) -> tuple[nn.Module, Io]:
        model = UNet2DConditionModel(**config)
        draw(model, generator)
        x, context = normal(generator, *latents), normal(generator, latents[0], tokens, config["cross_attention_dim"])
        t = torch.tensor(timesteps)
        out = model(x, t, context).sample
        return model, {"in.latents": x, "in.timesteps": t, "in.high": context, "out.prediction": out}

    return make


def controlnet(
    config: dict[str, Any], latents: tuple[int, ...], timesteps: list[int], tokens: int, factor: int, scale: float
) -> Callable:
    def make(generator: torch.Generator) -> tuple[nn.Module, Io]:
        model = ControlNetModel(**config)
        draw(model, generator)
        b, _, h, w = latents
        x, context = normal(generator, *latents), normal(generator, b, tokens, config["cross_attention_dim"])
        image = torch.rand((b, 3, h * factor, w * factor), generator=generator).half().double()
        t = torch.tensor(timesteps)
        residuals, mid = model(x, t, context, controlnet_cond=image, conditioning_scale=scale, return_dict=False)
        inputs = {"in.latents": x, "in.timesteps": t, "in.high": context, "in.image": image}
        inputs["in.scale"] = torch.tensor(scale)
        return model, inputs | {f"out.residuals.{i}": r for i, r in enumerate(residuals)} | {"out.mid": mid}

    return make


def autoencoder(config: dict[str, Any], image: tuple[int, ...], latents: tuple[int, ...]) -> Callable:
    def make(generator: torch.Generator) -> tuple[nn.Module, Io]:
        model = AutoencoderKL(**config)
        draw(model, generator)
        x = (2 * torch.rand(image, generator=generator) - 1).half().double()
        z = normal(generator, *latents)  # not scaled, as PyTorch's decoder expects them
        posterior = model.encode(x).latent_dist
        io = {"in.image": x, "in.latents": z, "out.mean": posterior.mean, "out.logvar": posterior.logvar}
        return model, io | {"out.image": model.decode(z).sample}

    return make


def text_encoder(config: dict[str, Any], texts: list[list[int]]) -> Callable:
    def make(generator: torch.Generator) -> tuple[nn.Module, Io]:
        model = CLIPTextModel(CLIPTextConfig(**config))
        draw(model, generator)
        start, end, pad = config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]
        ids = torch.tensor([([start, *text, end] + [pad] * 77)[:77] for text in texts])
        return model, {"in.token_ids": ids, "out.hidden": model(ids).last_hidden_state}

    return make


# A small Stable Diffusion 2.1: heads of one size (twice as many at twice the width) and linear projections.
SD21 = dict(
    block_out_channels=(8, 16, 16),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    layers_per_block=1,
    cross_attention_dim=12,
    attention_head_dim=[1, 2, 4],
    norm_num_groups=4,
    use_linear_projection=True,
    upcast_attention=True,
)
SD21_UP = dict(sample_size=12, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"))

NETWORKS: dict[str, Callable] = {
    # The sides 9 and 13 are odd, so every upsample must resize to the size of the next skip.
    "unet_odd_size": unet(
        dict(
            sample_size=9,
            block_out_channels=(8, 12, 12, 16),
            layers_per_block=2,
            cross_attention_dim=12,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        latents=(2, 4, 9, 13),
        timesteps=[937, 12],
        tokens=7,
    ),
    # Another depth, plain block first, different heads per level, linear projections (SD 2), other channels in and out.
    "unet_two_levels": unet(
        dict(
            sample_size=8,
            in_channels=5,
            out_channels=3,
            block_out_channels=(16, 24),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=18,
            attention_head_dim=[2, 6],
            norm_num_groups=4,
            use_linear_projection=True,
        ),
        latents=(1, 5, 12, 8),
        timesteps=[500],
        tokens=11,
    ),
    "controlnet_odd_size": controlnet(
        dict(
            block_out_channels=(8, 12, 16, 20),
            layers_per_block=2,
            cross_attention_dim=12,
            attention_head_dim=4,
            norm_num_groups=4,
            conditioning_embedding_out_channels=(6, 10, 14, 18),
        ),
        latents=(2, 4, 9, 13),
        timesteps=[3, 801],
        tokens=7,
        factor=8,
        scale=0.6,
    ),
    # A conditioning embedding with three widths, so the image is only four times as large as the latents.
    "controlnet_two_levels": controlnet(
        dict(
            in_channels=5,
            block_out_channels=(16, 24),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            cross_attention_dim=18,
            attention_head_dim=[2, 6],
            norm_num_groups=4,
            use_linear_projection=True,
            conditioning_embedding_out_channels=(5, 9, 13),
        ),
        latents=(1, 5, 6, 10),
        timesteps=[999],
        tokens=11,
        factor=4,
        scale=1.0,
    ),
    "unet_sd21": unet(SD21 | SD21_UP, latents=(2, 4, 12, 8), timesteps=[999, 40], tokens=9),
    "controlnet_sd21": controlnet(
        SD21 | dict(conditioning_embedding_out_channels=(4, 6, 8, 10)),
        latents=(1, 4, 8, 12),
        timesteps=[250],
        tokens=9,
        factor=8,
        scale=0.8,
    ),
    "autoencoder_three_levels": autoencoder(
        dict(
            block_out_channels=(8, 16, 24),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            scaling_factor=0.18215,
        ),
        image=(2, 3, 37, 26),
        latents=(2, 4, 5, 7),
    ),
    "autoencoder_four_levels": autoencoder(
        dict(
            block_out_channels=(6, 9, 12, 15),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=8,
            norm_num_groups=3,
            scaling_factor=0.7,
        ),
        image=(1, 3, 45, 59),
        latents=(1, 8, 3, 5),
    ),
    # SD 1.5 pads with the end token, SD 2 with token 0.
    "text_encoder_quick_gelu": text_encoder(
        dict(
            vocab_size=64,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            hidden_act="quick_gelu",
            bos_token_id=62,
            eos_token_id=63,
            pad_token_id=63,
        ),
        texts=[[], [5, 17, 3, 44, 17], [(7 * i * i + 3 * i) % 62 for i in range(90)]],
    ),
    "text_encoder_gelu": text_encoder(
        dict(
            vocab_size=50,
            hidden_size=60,
            intermediate_size=100,
            num_hidden_layers=2,
            num_attention_heads=6,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            bos_token_id=48,
            eos_token_id=49,
            pad_token_id=0,
        ),
        texts=[[9, 8, 7], [(11 * i) % 48 for i in range(40)]],
    ),
    # The ids of SD 2.1's tokenizer, which pads with "!". Its config.json has other ids, which are not used here.
    "text_encoder_sd21": text_encoder(
        dict(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=2,
            hidden_act="gelu",
            bos_token_id=62,
            eos_token_id=63,
            pad_token_id=0,
        ),
        texts=[[], [5, 0, 3, 44, 0], [(7 * i * i + 3 * i) % 62 for i in range(90)]],
    ),
}


def storable(tensor: Tensor, *, exact: bool) -> Tensor:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.int64:
        return tensor.int()
    if not exact:
        return tensor.float()
    half = tensor.half()
    assert torch.equal(half.double(), tensor.double())
    return half


def write_component(model: nn.Module, folder: Path, torch_key: Callable[[str], str] = str) -> None:
    """Writes config.json and weights. `torch_key` returns a tensor's key in the file."""
    is_text = isinstance(model, CLIPTextModel)
    weights = {torch_key(key): storable(value, exact=True) for key, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    text = model.config.to_json_string() if is_text else model.to_json_string()
    (folder / "config.json").write_text(json.dumps(json.loads(text), indent=2) + "\n")
    stem = "model" if is_text else "diffusion_pytorch_model"
    save_file(weights, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def write_io(io: Io, file: Path) -> None:
    exact = [key for key in io if key.startswith("in.") and key != "in.scale"]
    save_file({key: storable(value, exact=key in exact) for key, value in io.items()}, file)


def main() -> None:
    for name in sys.argv[1:] or NETWORKS:
        # Each network has its own seed, so that adding a network does not change the others.
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        with torch.no_grad():
            model, io = NETWORKS[name](generator)
        folder = HERE / name
        # transformers 5 dropped the prefix of Stable Diffusion's files.
        prefix = "text_model." if isinstance(model, CLIPTextModel) else ""
        write_component(model, folder, lambda key, prefix=prefix: prefix + key)
        write_io(io, folder / "io.safetensors")
        size = sum(file.stat().st_size for file in folder.iterdir())
        rms = {key: f"{value.pow(2).mean().sqrt():.2f}" for key, value in io.items() if key.startswith("out.")}
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {size / 1e3:.0f} kB, rms {rms}")


if __name__ == "__main__":
    main()
