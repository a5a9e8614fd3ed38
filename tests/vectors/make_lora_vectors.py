"""Makes tests/vectors/lora: LoRA files in each naming scheme, and two networks' weights after diffusers merged them.

Run manually, only to add a naming scheme, in an environment with torch. The tests only read the result and do not need
torch. It was run with torch 2.13.0 (CPU), diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, safetensors 0.8.0:

    python tests/vectors/make_lora_vectors.py

The networks are `stock/unet_odd_size` and `stock/text_encoder_quick_gelu`. NAME.safetensors is a LoRA file.
fused.safetensors has each weight that `fuse_lora(lora_scale=0.7)` changes, under NAME/COMPONENT/KEY.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

VECTORS = Path(__file__).parent
UNET, TEXT_ENCODER = VECTORS / "stock" / "unet_odd_size", VECTORS / "stock" / "text_encoder_quick_gelu"
TOKENIZER = VECTORS.parents[1] / "xpsr_jax" / "assets" / "tokenizer"
STRENGTH, RANK = 0.7, 2
ALPHAS = {"kohya": 1.0, "locon": 3.0}
NAMES = ("kohya", "locon", "diffusers", "peft")


def pipeline() -> StableDiffusionPipeline:
    autoencoder = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, layers_per_block=1)
    text_encoder = CLIPTextModel.from_pretrained(TEXT_ENCODER)
    unet = UNet2DConditionModel.from_pretrained(UNET)
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder.float(),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        unet=unet.float(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def weights(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """The weights by COMPONENT/KEY. The text encoder's keys have the prefix of Stable Diffusion's files."""
    networks = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    found = {}
    for component, network in networks.items():
        for key, tensor in network.state_dict().items():
            prefix = "text_model." if component == "text_encoder" and not key.startswith("text_model.") else ""
            found[f"{component}/{prefix}{key}"] = tensor.detach().clone()
    return found


def fused(file: Path, strength: float) -> dict[str, Tensor]:
    """The weights that diffusers changes when it fuses a LoRA file, by COMPONENT/KEY."""
    pipe = pipeline()
    before = weights(pipe)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    pipe.fuse_lora(lora_scale=strength)
    pipe.unload_lora_weights()
    after = weights(pipe)
    assert before.keys() == after.keys()
    return {key: tensor for key, tensor in after.items() if not torch.equal(tensor, before[key])}


def targets(network: nn.Module, *, convolutions: bool) -> Iterator[tuple[str, nn.Module]]:
    """Some modules of every kind that can have LoRA: attention, its projections and feed-forward, convolutions."""
    wanted = ("to_q", "to_out.0", "ff.net.0.proj", "proj_in", "q_proj", "out_proj", "fc1")
    if convolutions:
        wanted = ("conv1", "downsamplers.0.conv", "conv_shortcut", "proj_out", "to_v", "q_proj", "out_proj")
    seen: dict[str, int] = {}
    for name, module in network.named_modules():
        kind = next((each for each in wanted if name.endswith(f".{each}")), None)
        if kind is not None and seen.setdefault(kind, 0) < 2:
            seen[kind] += 1
            yield name, module


def pair(module: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = module.weight.shape
    pointwise = (1, 1) if len(shape) == 4 else ()
    down = torch.randn((RANK, *shape[1:]), generator=generator) / 4
    return down.half().float(), (torch.randn((shape[0], RANK, *pointwise), generator=generator) / 4).half().float()


def lora(name: str, seed: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a LoRA file."""
    generator, pipe = torch.Generator().manual_seed(seed), pipeline()
    tensors: dict[str, Tensor] = {}
    settings: dict[str, object] = {}
    for component, network in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder)):
        chosen = list(targets(network, convolutions=name == "locon"))
        # The part of PEFT's configuration that diffusers writes.
        peft = {"r": RANK, "lora_alpha": 5, "target_modules": [module for module, _ in chosen], "peft_type": "LORA"}
        settings |= {f"{component}.{key}": value for key, value in peft.items()}
        for module, layer in chosen:
            down, up = pair(layer, generator)
            full = module if component == "unet" or module.startswith("text_model.") else f"text_model.{module}"
            tensors |= named(name, component, full, down, up)
    return tensors, {"format": "pt", **({"lora_adapter_metadata": json.dumps(settings)} if name == "peft" else {})}


def named(name: str, component: str, module: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    if name in ("kohya", "locon"):
        key = f"lora_{'unet' if component == 'unet' else 'te'}_{module.replace('.', '_')}"
        return {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up,
            # The same value for all modules. With different ones, diffusers 0.42 ignores those of attention and warns.
            f"{key}.alpha": torch.tensor(ALPHAS[name]),
        }
    if name == "peft":
        return {f"{component}.{module}.lora_A.weight": down, f"{component}.{module}.lora_B.weight": up}
    if component == "unet" and ".attn" in module:
        head, _, last = module.partition("_blocks.0.attn")
        attn, _, projection = last.partition(".")
        key = f"unet.{head}_blocks.0.attn{attn}.processor.{projection.removesuffix('.0')}_lora"
        return {f"{key}.down.weight": down, f"{key}.up.weight": up}
    if component == "text_encoder":
        key = f"{component}.{module}.lora_linear_layer"
        return {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return {f"unet.{module}.lora.down.weight": down, f"unet.{module}.lora.up.weight": up}


def main() -> None:
    folder, results = VECTORS / "lora", {}
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(NAMES):
        tensors, metadata = lora(name, seed)
        save_file({key: t.contiguous() for key, t in tensors.items()}, folder / f"{name}.safetensors", metadata)
        changed = fused(folder / f"{name}.safetensors", STRENGTH)
        pairs = sum(key.endswith(("down.weight", "lora_A.weight")) for key in tensors)
        assert len(changed) == pairs, (name, len(changed), pairs)
        results |= {f"{name}/{key}": tensor.contiguous() for key, tensor in changed.items()}
    save_file(results, folder / "fused.safetensors")


if __name__ == "__main__":
    sys.exit(main())
