"""Measures a step of sampling on this machine's processor: CPU seconds and memory, side by side.

    pip install "xpsr-jax[torch]"
    python benchmarks/step.py

On latents of 64 x 64 (512 x 512 pixels), float32, random weights:

(a) Stable Diffusion 1.5's UNet of PyTorch's diffusers, two samples;
(b) the same network of ours;
(c) a guided step of XPSR (ControlNet and UNet, one image, two halves) computed plainly: both halves whole, the texts'
    keys and values anew, XLA's convolutions;
(d) the same as sample.py computes it.

(c) stores all scores of attention, as an einsum does; (c') has our attention for CPUs and is otherwise (c). All take
turns, (a) and (b) in one process, the others, for want of memory, in one each. Memory is what a step takes beyond the
weights.
"""

import argparse
import functools
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.tree_util import DictKey

from xpsr_jax.diffusion.guidance import guide
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.models.blocks import Text
from xpsr_jax.models.configs import ControlNetConfig, UNetConfig
from xpsr_jax.models.controlnet import ControlNet, ImageFeatures
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.unet import UNet
from xpsr_jax.models.winograd import with_winograd

RNG = np.random.default_rng(0)

M = TypeVar("M", bound=nnx.Module)
Networks = tuple[UNet, ControlNet]
Run = Callable[[], object]


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def filled(module: M) -> M:
    """With random weights that keep activations near 1; a megabyte of them, over and over, is random enough."""
    values = random(2**18 + 1)
    state = nnx.state(module, nnx.Param)

    def fill(path: tuple[DictKey, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-2].key != "kernel":
            return jnp.full(leaf.shape, float(path[-2].key == "scale"))
        return jnp.asarray(np.resize(values, leaf.shape) / np.float32(np.sqrt(np.prod(leaf.shape[:-1]))))

    nnx.update(module, jax.tree_util.tree_map_with_path(fill, state))
    return module


def abstract(make: Callable[[nnx.Rngs], M]) -> M:
    module: M = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    return module


def jitted(call: Callable[..., Array], modules: nnx.Module | Networks, *inputs: object) -> Run:
    graph, state = nnx.split(modules)
    program = jax.jit(lambda state, *inputs: call(nnx.merge(graph, state), *inputs))
    inputs = jax.tree.map(jnp.asarray, inputs)
    return lambda: jax.block_until_ready(program(state, *inputs))


def stock() -> dict[str, Run]:
    """(a) and (b)."""
    import torch
    from diffusers import UNet2DConditionModel

    latents, text = random(2, 64, 64, 4), random(2, 77, 768)
    network = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()  # type: ignore[attr-defined, unused-ignore]
    inputs = torch.from_numpy(latents).permute(0, 3, 1, 2), torch.tensor(500), torch.from_numpy(text)

    def theirs() -> object:
        with torch.no_grad():
            return network(*inputs).sample

    config = UNetConfig(conditional_attention=False)
    ours = with_winograd(filled(abstract(lambda rngs: UNet(config, rngs=rngs))))
    steps = jnp.full(2, 500)
    projected = nnx.jit(lambda unet, text: unet.project_text(text))(ours, text)
    return {"a": theirs, "b": jitted(lambda unet, *x: unet(*x), ours, latents, steps, projected)}


def xpsr(name: str) -> dict[str, Run]:
    """(c), (c') or (d). Image features are computed beforehand for all: the released code does so too."""
    latents, high, low = (jnp.asarray(random(*shape)) for shape in ((1, 64, 64, 4), (2, 77, 768), (1, 77, 768)))
    image, t = random(1, 512, 512, 3), jnp.full(1, 500)
    compute = Compute(attention="plain" if name == "c" else "auto")
    networks = (
        filled(abstract(lambda rngs: UNet(UNetConfig(), rngs=rngs, compute=compute))),
        filled(abstract(lambda rngs: ControlNet(ControlNetConfig(), rngs=rngs, compute=compute))),
    )
    features = nnx.jit(lambda controlnet, image: controlnet.encode_image(image))(networks[1], image)
    features = features._replace(rgb_predictions=())

    if name != "d":
        return {name: jitted(whole, networks, latents, t, high, low, features)}
    texts = nnx.jit(project)(*networks, high, low)
    return {
        name: jitted(shared, (with_winograd(networks[0]), with_winograd(networks[1])), latents, t, *texts, features)
    }


def project(unet: UNet, controlnet: ControlNet, high: Array, low: Array) -> tuple[Text, tuple[Text, Text]]:
    """What is computed once for all steps."""
    return unet.project_text(high), (controlnet.project_text(high), controlnet.project_text(low))


def whole(networks: Networks, latents: Array, t: Array, high: Array, low: Array, features: ImageFeatures) -> Array:
    """A guided step, nothing of it shared by the halves."""
    unet, controlnet = networks
    latents, t, low, features = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), (latents, t, low, features))
    control = controlnet(latents, t, high, low, features)
    return guided(unet(latents, t, high, control.residuals, control.mid))


def shared(
    networks: Networks, latents: Array, t: Array, text: Text, texts: tuple[Text, Text], features: ImageFeatures
) -> Array:
    """A guided step as `inference.restore` computes it."""
    unet, controlnet = networks
    control = controlnet(latents, t, *texts, features)
    return guided(unet(latents, t, text, control.residuals, control.mid))


def guided(prediction: Array) -> Array:
    return guide(prediction[::2], prediction[1::2], scale=5.5, form="paper", rescale=0.0)


PARTS = {"stock": stock} | {name: functools.partial(xpsr, name) for name in ("c", "c'", "d")}


def measure(run: Run) -> tuple[float, float, int]:
    """CPU seconds and seconds of a run that is compiled, and the bytes that it takes beyond those that are held."""
    run()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    held, cpu, clock = resident("VmRSS"), time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - clock, resident("VmHWM") - held


def resident(field: str) -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        use_compilation_cache()
        print(json.dumps({name: measure(run) for name, run in PARTS[arguments.part]().items()}))
        return
    found: dict[str, list[float]] = {}
    for part in [*PARTS] * arguments.rounds:
        command = [sys.executable, __file__, "--part", part]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for name, figures in json.loads(output.splitlines()[-1]).items():
            print(name, figures, file=sys.stderr, flush=True)
            found[name] = np.minimum(found.get(name, figures), figures).tolist()
    for name, (cpu, clock, memory) in found.items():
        print(f"{name:3s} {cpu:8.2f} s of CPU {clock:8.2f} s {memory / 2**30:8.2f} GiB beyond the weights")
    for one, other in (("b", "a"), ("d", "c"), ("d", "c'")):
        print(f"{one} = {found[one][0] / found[other][0]:.3f} x {other}")


if __name__ == "__main__":
    main()
