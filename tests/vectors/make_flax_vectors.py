"""Makes tests/vectors/flax: small random Flax networks, saved by the last Flax releases, with inputs and outputs.

Run manually in a separate environment. The tests only read the result. It was run with diffusers 0.39.0, transformers
4.57.6, flax 0.12.8, jax 0.10.2 (CPU):

    python tests/vectors/make_flax_vectors.py [NAME ...]

Each network has a folder NAME/ with config.json, *.msgpack (random parameters, rounded to float16) and io.safetensors
(`in.*`, `out.*`; float32; images have channels first, as in diffusers' Flax models).
"""

import functools
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from diffusers import FlaxAutoencoderKL, FlaxControlNetModel, FlaxUNet2DConditionModel
from safetensors.numpy import save_file
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModel

HERE = Path(__file__).parent / "flax"
# Norms in diffusers' Flax models always have 32 groups, so 32 channels are the minimum.
SHARED = dict(
    block_out_channels=(32,),
    down_block_types=("CrossAttnDownBlock2D",),
    layers_per_block=1,
    cross_attention_dim=8,
    attention_head_dim=4,
)


def draw(shapes, rng):
    """Random parameters with these shapes, in float16."""

    def one(path, leaf):
        noise, name = rng.standard_normal(leaf.shape), path[-1].key
        if name == "kernel":
            return (noise / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float16)
        return (1 + 0.3 * noise if name == "scale" else 0.3 * noise).astype(np.float16)

    return jax.tree_util.tree_map_with_path(one, shapes)


def unet(rng):
    # Only the mid block has attention, to keep the file small.
    blocks = dict(down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    model = FlaxUNet2DConditionModel(sample_size=6, use_linear_projection=True, **SHARED | blocks)
    inputs = {
        "latents": rng.standard_normal((1, 4, 6, 5)),
        "timesteps": np.array([640.0]),
        "text": rng.standard_normal((1, 5, 8)),
    }
    return (
        model,
        inputs,
        lambda params, x: model.apply({"params": params}, x["latents"], x["timesteps"], x["text"]).sample,
    )


def controlnet(rng):
    model = FlaxControlNetModel(sample_size=6, conditioning_embedding_out_channels=(4, 4, 6, 6), **SHARED)
    inputs = {
        "latents": rng.standard_normal((1, 4, 6, 5)),
        "timesteps": np.array([321.0]),
        "text": rng.standard_normal((1, 5, 8)),
        "image": rng.random((1, 3, 48, 40)),
    }

    def run(params, x):
        down, mid = model.apply(
            {"params": params}, x["latents"], x["timesteps"], x["text"], x["image"], return_dict=False
        )
        outputs = {"mid": mid, **{f"residuals.{i}": each for i, each in enumerate(down)}}
        return {name: each.transpose(0, 3, 1, 2) for name, each in outputs.items()}

    return model, inputs, run


def autoencoder(rng):
    model = FlaxAutoencoderKL(
        block_out_channels=(8, 12),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=8,
    )
    inputs = {"image": rng.standard_normal((1, 3, 10, 8)), "latents": rng.standard_normal((1, 4, 4, 3))}

    def run(params, x):
        encoded = model.apply({"params": params}, x["image"], method=model.encode).latent_dist
        decoded = model.apply({"params": params}, x["latents"], method=model.decode).sample
        moments = {name: getattr(encoded, name).transpose(0, 3, 1, 2) for name in ("mean", "logvar")}
        return {"image": decoded, **moments}

    return model, inputs, run


def text_encoder(rng):
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        bos_token_id=38,
        eos_token_id=39,
        pad_token_id=39,
    )
    model = FlaxCLIPTextModel(config, _do_init=False)
    ids = rng.integers(0, 38, (2, 77))
    return model, {"token_ids": ids}, lambda params, x: model(x["token_ids"], params=params).last_hidden_state


NETWORKS = {"unet": unet, "controlnet": controlnet, "autoencoder": autoencoder, "text_encoder": text_encoder}


def main() -> None:
    for name in sys.argv[1:] or NETWORKS:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        model, inputs, run = NETWORKS[name](rng)
        inputs = {
            key: np.asarray(value, np.int32 if value.dtype == int else np.float32) for key, value in inputs.items()
        }
        options = {"input_shape": (1, 77)} if name == "text_encoder" else {}
        shapes = jax.eval_shape(functools.partial(model.init_weights, **options), jax.random.PRNGKey(0))
        params = draw(shapes, rng)
        full = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        with jax.default_matmul_precision("highest"):
            outputs = jax.jit(run)(full, inputs)
        outputs = outputs if isinstance(outputs, dict) else {"result": outputs}
        model.save_pretrained(HERE / name, params=params)
        io = {f"in.{key}": value for key, value in inputs.items()}
        io |= {f"out.{key}": np.ascontiguousarray(value, np.float32) for key, value in outputs.items()}
        save_file(io, HERE / name / "io.safetensors")
        rms = {key: f"{np.sqrt(np.mean(np.square(value))):.2f}" for key, value in outputs.items()}
        print(name, f"{sum(f.stat().st_size for f in (HERE / name).iterdir()) / 1e3:.0f} kB", rms, flush=True)


if __name__ == "__main__":
    main()
