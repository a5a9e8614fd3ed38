"""Makes single files of Stable Diffusion in the published format: current names are turned into those of the LDM code.

tests/torch checks them with diffusers' own reader of such files.
"""

import re

import numpy as np

BUFFERS = ("betas", "alphas_cumprod", "sqrt_alphas_cumprod", "posterior_variance", "log_one_minus_alphas_cumprod")
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def unet_key(key: str, layers: int, attended_up: set[int]) -> str:
    for current, old in _ENDS.items():
        key = re.sub(rf"^{re.escape(current)}\.", f"{old}.", key)

    def down(m: re.Match) -> str:
        level, kind, layer = int(m[1]), m[2], int(m[3])
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op."
        return f"input_blocks.{1 + level * (layers + 1) + layer}.{int(kind == 'attentions')}."

    def up(m: re.Match) -> str:
        level, kind, layer = int(m[1]), m[2], int(m[3])
        if kind == "upsamplers":
            return f"output_blocks.{level * (layers + 1) + layers}.{1 + (level in attended_up)}.conv."
        return f"output_blocks.{level * (layers + 1) + layer}.{int(kind == 'attentions')}."

    key = re.sub(r"^down_blocks\.(\d+)\.downsamplers\.0\.conv\.", r"down_blocks.\1.downsamplers.0.", key)
    key = re.sub(r"^down_blocks\.(\d+)\.(\w+)\.(\d+)\.", down, key)
    key = re.sub(r"^up_blocks\.(\d+)\.upsamplers\.0\.conv\.", r"up_blocks.\1.upsamplers.0.", key)
    key = re.sub(r"^up_blocks\.(\d+)\.(\w+)\.(\d+)\.", up, key)
    if ".transformer_blocks." in key:
        return key
    return re.sub(r"\.(\w+)\.(weight|bias)$", lambda m: f".{_RESNET.get(m[1], m[1])}.{m[2]}", key)


def autoencoder_key(key: str, levels: int) -> str:
    key = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", key)
    names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    key = re.sub(r"\.mid_block\.attentions\.0\.([\w.]+)\.(\w+)$", lambda m: f".mid.attn_1.{names[m[1]]}.{m[2]}", key)
    key = re.sub(r"\.down_blocks\.(\d)\.resnets\.", r".down.\1.block.", key)
    key = re.sub(r"\.down_blocks\.(\d)\.downsamplers\.0\.", r".down.\1.downsample.", key)
    key = re.sub(r"\.up_blocks\.(\d)\.", lambda m: f".up.{levels - 1 - int(m[1])}.", key)
    key = key.replace(".upsamplers.0.", ".upsample.").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"(\.up\.\d)\.resnets\.", r"\1.block.", key)
    return key.replace("conv_norm_out", "norm_out")


def open_clip(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CLIP's tensors with OpenCLIP's names, and one more layer, which Stable Diffusion 2 does not use."""
    layers = 1 + max(int(m[1]) for key in tensors if (m := re.search(r"layers\.(\d+)\.", key)))
    old = {}
    for key, array in tensors.items():
        key = key.removeprefix("text_model.")
        if m := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", key):
            names = [f"text_model.encoder.layers.{m[1]}.self_attn.{part}_proj.{m[2]}" for part in "qkv"]
            old[f"transformer.resblocks.{m[1]}.attn.in_proj_{m[2]}"] = np.concatenate([tensors[n] for n in names])
        elif not re.search(r"self_attn\.[kv]_proj", key):
            for current, before in {
                "embeddings.token_embedding": "token_embedding",
                "embeddings.position_embedding.weight": "positional_embedding",
                "final_layer_norm": "ln_final",
                "encoder.layers": "transformer.resblocks",
                "self_attn.out_proj": "attn.out_proj",
                "layer_norm": "ln_",
                "mlp.fc1": "mlp.c_fc",
                "mlp.fc2": "mlp.c_proj",
            }.items():
                key = key.replace(current, before) if before != "ln_" or "ln_final" not in key else key
            old[key] = array
    last = {k.replace("blocks.0.", f"blocks.{layers}."): a for k, a in old.items() if "resblocks.0." in k}
    width = old["ln_final.weight"].size
    return old | last | {"text_projection": np.zeros((width, width), np.float32), "logit_scale": np.float32([1])}


def single_file(unet, autoencoder, text, *, version, layers, attended_up, levels) -> dict[str, np.ndarray]:
    """A complete checkpoint from networks with current names. It has the UNet's average and the schedule's tables."""
    file = {name: np.zeros(3, np.float32) for name in BUFFERS}
    for key, array in unet.items():
        name = f"model.diffusion_model.{unet_key(key, layers, attended_up)}"
        file[name] = array
        file[f"model_ema.{name.removeprefix('model.').replace('.', '')}"] = array + np.float32(1)
    for key, array in autoencoder.items():
        name = autoencoder_key(key, levels)
        pointwise = ".attn_1." in name and array.ndim == 2
        file[f"first_stage_model.{name}"] = array[:, :, None, None] if pointwise else array
    if version == 1:
        file |= {f"cond_stage_model.transformer.{key}": array for key, array in text.items()}
        file["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(77)[None]
    else:
        file |= {f"cond_stage_model.model.{key}": array for key, array in open_clip(text).items()}
    return file
