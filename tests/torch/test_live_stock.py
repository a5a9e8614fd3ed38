"""Compares Stable Diffusion's networks with the installed PyTorch libraries, with settings that no golden file has.

Weights are exchanged as users do it: the library saves a folder and ours reads it, or ours saves a folder and the
library reads it. PyTorch computes in float64.
"""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from flax import nnx
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from tests.models.golden import VECTORS, assert_close, channels_last, error
from tests.vectors.make_stock_vectors import draw, normal
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.parameters import parameters
from xpsr_jax.models.rrdb import ResidualInResidualDenseBlock
from xpsr_jax.weights import rules
from xpsr_jax.weights.networks import (
    AUTOENCODER,
    CONTROLNET,
    TEXT_ENCODER,
    UNET,
    load_network,
    read_config,
    save_network,
)

# Three levels, two layers per transformer, another sinusoidal embedding. No golden file has these.
SHARED = dict(
    block_out_channels=(8, 16, 24),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    layers_per_block=1,
    transformer_layers_per_block=2,
    cross_attention_dim=10,
    attention_head_dim=[1, 4, 3],
    norm_num_groups=2,
    flip_sin_to_cos=False,
    freq_shift=1,
)
UP = dict(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"))
STOCK_UNET = {"conditional_attention": False}
STOCK_CONTROLNET = {"fusion": "high", "return_rgbs": False, "use_latent_pred": False}


def random(model, seed):
    generator = torch.Generator().manual_seed(seed)
    draw(model, generator)
    return model, generator


def read_from(model, network, folder, **changes):
    """Our network, read from the folder that the library saves."""
    model.float().save_pretrained(folder)
    model.double()
    return load_network(network, folder, config=dataclasses.replace(read_config(network, folder), **changes))


def array(tensor):
    return channels_last(tensor.detach().float().numpy())


@pytest.fixture(scope="module")
def unets(tmp_path_factory):
    # A seed with well-conditioned gradients: the error of PyTorch's own float32 is 6e-5 here, and 8e-3 for bad seeds.
    model, generator = random(UNet2DConditionModel(sample_size=7, **SHARED, **UP), 1002)
    ours = read_from(model, UNET, tmp_path_factory.mktemp("unet"), **STOCK_UNET)
    inputs = normal(generator, 2, 4, 7, 10), torch.tensor([640, 77]), normal(generator, 2, 5, 10)
    return model, ours, inputs


def test_unet_and_its_gradients(unets):
    model, ours, (latents, timesteps, text) = unets
    latents.requires_grad_()
    prediction = model(latents, timesteps, text).sample
    loss = torch.mean(prediction**2)
    loss.backward()

    graph, state = nnx.split(ours)

    @jax.jit
    def run(state, latents):
        def objective(state, latents):
            prediction = nnx.merge(graph, state)(latents, jnp.asarray(timesteps.numpy()), jnp.asarray(array(text)))
            return jnp.mean(prediction**2), prediction

        (loss, prediction), gradients = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(state, latents)
        return loss, prediction, gradients

    our_loss, our_prediction, (of_state, of_latents) = run(state, array(latents))
    assert error(our_prediction, array(prediction)) <= 3e-5  # measured: 8.4e-6
    assert abs(our_loss / loss.item() - 1) <= 1e-5
    assert error(of_latents, array(latents.grad)) <= 3e-4  # measured: 5.1e-5
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(of_state)}
    ours_by_key = dict(rules.to_torch(path, np.asarray(leaf[...])) for path, leaf in flat.items())
    theirs = {name: parameter.grad.float().numpy() for name, parameter in model.named_parameters()}
    assert_close(ours_by_key, theirs, 5e-4)  # measured: 1.6e-4


def test_controlnet(tmp_path):
    embedding = dict(conditioning_embedding_out_channels=(4, 6, 10), conditioning_channels=3)
    model, generator = random(ControlNetModel(**SHARED, **embedding), 1001)
    ours = read_from(model, CONTROLNET, tmp_path, **STOCK_CONTROLNET)
    latents, text, image = normal(generator, 1, 4, 6, 9), normal(generator, 1, 5, 10), normal(generator, 1, 3, 24, 36)
    down, mid = model(latents, torch.tensor([321]), text, image, conditioning_scale=1.3, return_dict=False)

    @nnx.jit
    def run(controlnet, latents, text, image):
        return controlnet(latents, jnp.array([321]), text, None, controlnet.encode_image(image), scale=1.3)

    output = run(ours, array(latents), array(text), array(image))
    for one, other in zip((*output.residuals, output.mid), (*down, mid), strict=True):
        assert error(one, array(other)) <= 2e-5  # measured: 4.9e-6


@pytest.mark.parametrize("attention", [True, False], ids=["attention", "no attention"])
def test_autoencoder(attention, tmp_path):
    config = dict(
        mid_block_add_attention=attention,
        block_out_channels=(8, 12),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    model, generator = random(AutoencoderKL(**config), 1003)
    ours = read_from(model, AUTOENCODER, tmp_path)
    image, latents = normal(generator, 1, 3, 15, 22), normal(generator, 1, 3, 5, 4)
    posterior = model.encode(image).latent_dist
    run = nnx.jit(lambda vae, image, latents: (*vae.moments(image), vae.decode(latents * 0.5)))
    outputs = run(ours, array(image), array(latents))
    for one, other in zip(outputs, (posterior.mean, posterior.logvar, model.decode(latents).sample), strict=True):
        assert error(one, array(other)) <= 3e-5  # measured: 2.4e-6


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_encoder(activation, tmp_path):
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=36,
        intermediate_size=50,
        num_hidden_layers=2,
        num_attention_heads=3,
        hidden_act=activation,
        bos_token_id=38,
        eos_token_id=39,
        pad_token_id=39,
    )
    model, generator = random(CLIPTextModel(config), 1004)
    ours = read_from(model, TEXT_ENCODER, tmp_path)
    ids = torch.randint(0, 38, (2, 77), generator=generator)
    ids[:, 0], ids[0, 9:], ids[1, -1] = 38, 39, 39
    output = nnx.jit(lambda encoder, ids: encoder(ids))(ours, ids.numpy().astype(np.int32))
    assert error(output, array(model(ids).last_hidden_state)) <= 1e-5  # measured: 1.6e-6


def test_rrdb():
    """The block equals its definition: five dense convolutions, residuals scaled by 0.2 (method §3)."""
    block = ResidualInResidualDenseBlock(4, growth=3, compute=Compute(), rngs=nnx.Rngs(0))
    weights = {path: torch.tensor(np.asarray(leaf[...])).double() for path, leaf in parameters(block).items()}

    def conv(name, x):
        kernel = weights[f"{name}.kernel"].permute(3, 2, 0, 1)
        return torch.nn.functional.conv2d(x, kernel, weights[f"{name}.bias"], padding=1)

    def dense(name, x):
        seen = x
        for i in range(1, 5):
            new = torch.nn.functional.leaky_relu(conv(f"{name}.conv{i}", seen), 0.2)
            seen = torch.cat([seen, new], dim=1)
        return x + 0.2 * conv(f"{name}.conv5", seen)

    x = normal(torch.Generator().manual_seed(1005), 1, 4, 6, 5)
    expected = x + 0.2 * dense("rdb3", dense("rdb2", dense("rdb1", x)))
    assert error(nnx.jit(lambda block, x: block(x))(block, array(x)), array(expected)) <= 2e-6  # measured: 0.1e-6


def test_diffusers_reads_our_stock_unet(unets, tmp_path):
    """No key is missing or unexpected, and the model computes the same result as before."""
    model, ours, inputs = unets
    save_network(UNET, ours, tmp_path)
    again, report = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    with torch.no_grad():
        torch.testing.assert_close(again.double()(*inputs).sample, model(*inputs).sample, rtol=0, atol=0)


def test_diffusers_reads_the_stock_part_of_our_xpsr_unet(tmp_path):
    """The export without Conditional Attention is exactly Stable Diffusion's UNet."""
    released, exported = tmp_path / "released", tmp_path / "exported"
    released.mkdir()
    exported.mkdir()
    shutil.copy(VECTORS / "xpsr" / "unet_config.json", released / "config.json")
    shutil.copy(VECTORS / "xpsr" / "unet.safetensors", released / "diffusion_pytorch_model.safetensors")
    save_network(UNET, load_network(UNET, released), exported)
    weights = load_file(exported / "diffusion_pytorch_model.safetensors")
    stock = {key: value for key, value in weights.items() if ".pixel_attentions." not in key}
    assert len(weights) - len(stock) == 8 * 26  # 8 transformers with 26 tensors each
    model = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(exported))
    model.load_state_dict(stock, strict=True)


@pytest.mark.parametrize(
    ("network", "library", "name", "changes"),
    [
        pytest.param(CONTROLNET, ControlNetModel, "controlnet_two_levels", STOCK_CONTROLNET, id="controlnet"),
        pytest.param(AUTOENCODER, AutoencoderKL, "autoencoder_four_levels", {}, id="autoencoder"),
        pytest.param(TEXT_ENCODER, CLIPTextModel, "text_encoder_gelu", {}, id="text-encoder"),
    ],
)
def test_libraries_read_our_other_networks(network, library, name, changes, tmp_path):
    source = VECTORS / "stock" / name
    config = dataclasses.replace(read_config(network, source), **changes)
    save_network(network, load_network(network, source, config=config), tmp_path)
    model, report = library.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    original = load_file(next(source.glob("*model.safetensors")))
    weights = {network.names.prefix + key: value for key, value in model.state_dict().items()}
    assert weights.keys() == original.keys()
    assert all(torch.equal(weights[key], original[key].float()) for key in original)
