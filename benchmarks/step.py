"""Measures a sampling step on this machine's processor: CPU seconds and memory of several programs, side by side.

    pip install "xpsr-jax[torch]"
    python benchmarks/step.py

With latents of 64 x 64 (512 x 512 pixels), float32, random weights:

(a) Stable Diffusion 1.5's UNet from PyTorch's diffusers, two samples;
(b) our version of the same network;
(c) a guided step of XPSR (ControlNet and UNet, one image, two halves), computed in the plain way: both halves whole,
    the texts' keys and values computed in the step, XLA's convolutions;
(c') like (c), but with our attention for CPUs; (c) stores all attention scores, like an einsum;
(d) the same step, computed like in sample.py;
(e) a step of (d) without guidance;
(f1) to (f3) guided steps that use the cached features of a whole step: only the last 1 to 3 layers of the decoder are
    computed;
(e1) to (e3) such steps without guidance;
(g) 10 guided steps, all whole;
(h) 10 guided steps: every third is whole, the others are like (f3). Steps of (g) and (h) run in turn.

All programs run in turn. (a) and (b) share a process, and so do (e) to (h). The others need a process each, because
memory is limited. Memory is the memory of a step in addition to the weights.
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
from xpsr_jax.models.unet import KeptFeatures, UNet
from xpsr_jax.models.winograd import with_winograd

RNG = np.random.default_rng(0)
# Number of steps in (g) and (h), and the cache interval of (h).
STEPS, INTERVAL = 10, 3
# CPU seconds, seconds, and bytes in addition to those that were held before.
Figures = tuple[float, float, int]

M = TypeVar("M", bound=nnx.Module)
Networks = tuple[UNet, ControlNet]
Run = Callable[[], object]


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def filled(module: M) -> M:
    """Fills a network with random weights that keep activations near 1. One megabyte of values is repeated."""
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


def jitted(
    call: Callable[..., Array | tuple[Array, KeptFeatures]], modules: nnx.Module | Networks, *inputs: object
) -> Run:
    graph, state = nnx.split(modules)
    program = jax.jit(lambda state, *inputs: call(nnx.merge(graph, state), *inputs))
    inputs = jax.tree.map(jnp.asarray, inputs)
    return lambda: jax.block_until_ready(program(state, *inputs))


def stock() -> dict[str, Figures]:
    """Measures (a) and (b)."""
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
    return {"a": measure(theirs), "b": measure(jitted(lambda unet, *x: unet(*x), ours, latents, steps, projected))}


def xpsr(name: str) -> dict[str, Figures]:
    """Measures (c), (c') or (d). The image features are computed before the step, as in the released code."""
    networks, latents, t, high, low, features = inputs_of(Compute(attention="plain" if name == "c" else "auto"))
    if name != "d":
        return {name: measure(jitted(whole, networks, latents, t, high, low, features))}
    texts = nnx.jit(project)(*networks, high, low)
    return {
        name: measure(
            jitted(shared, (with_winograd(networks[0]), with_winograd(networks[1])), latents, t, *texts, features)
        )
    }


def with_features_kept() -> dict[str, Figures]:
    """Measures (e) to (h)."""
    networks, latents, t, high, low, features = inputs_of(Compute(), winograd=True)
    unet = networks[0]
    text, texts = nnx.jit(project)(*networks, high, low)
    positive, positives = nnx.jit(project)(*networks, high[:1], low)
    most = unet.config.layers_per_block + 1

    def from_features(layers: int, texts: Text, of_controlnet: tuple[Text, Text]) -> Run:
        keep = functools.partial(keeping, layers=layers)
        _, shapes = nnx.eval_shape(keep, networks, latents, t, texts, of_controlnet, features)
        kept = jax.tree.map(lambda feature: jnp.asarray(random(*feature.shape)), shapes)
        return jitted(functools.partial(from_kept, layers=layers), unet, latents, t, texts, kept)

    outer = from_features(most, text, texts)
    step = jitted(shared, networks, latents, t, text, texts, features)
    keep_step = jitted(functools.partial(keeping, layers=most), networks, latents, t, text, texts, features)
    measured = {f"f{most}": measure(outer)}
    for run in (step, keep_step):
        run()
    turns: dict[str, list[Figures]] = {"g": [], "h": []}
    for index in range(STEPS):
        for name, run in (("g", step), ("h", outer if index % INTERVAL else keep_step)):
            turns[name].append(measure(run, compiled=True))
            print(f"{name}, step {index + 1}:", turns[name][-1], file=sys.stderr, flush=True)
    for name, steps in turns.items():
        cpu, clock, memory = zip(*steps, strict=True)
        measured[name] = sum(cpu), sum(clock), max(memory)
    measured["e"] = measure(jitted(alone, networks, latents, t, positive, positives, features))
    for layers in range(1, most + 1):
        measured[f"e{layers}"] = measure(from_features(layers, positive, positives))
        if layers < most:
            measured[f"f{layers}"] = measure(from_features(layers, text, texts))
    return measured


def transformed(network: M) -> M:
    """The network with Winograd's kernels. The replaced kernels are freed, because memory is limited."""
    replaced = with_winograd(network)
    kept = jax.block_until_ready(jax.tree.leaves(nnx.state(replaced)))
    still_used = {id(leaf) for leaf in kept}
    for leaf in jax.tree.leaves(nnx.state(network)):
        if id(leaf) not in still_used:
            leaf.delete()
    return replaced


def inputs_of(
    compute: Compute, *, winograd: bool = False
) -> tuple[Networks, Array, Array, Array, Array, ImageFeatures]:
    """XPSR's networks, latents, timesteps, texts of both halves, and the image features."""
    latents, high, low = (jnp.asarray(random(*shape)) for shape in ((1, 64, 64, 4), (2, 77, 768), (1, 77, 768)))
    image, t = random(1, 512, 512, 3), jnp.full(1, 500)
    unet = filled(abstract(lambda rngs: UNet(UNetConfig(), rngs=rngs, compute=compute)))
    if winograd:  # before the other network is made, to save memory
        unet = transformed(unet)
    controlnet = filled(abstract(lambda rngs: ControlNet(ControlNetConfig(), rngs=rngs, compute=compute)))
    if winograd:
        controlnet = transformed(controlnet)
    features = nnx.jit(lambda controlnet, image: controlnet.encode_image(image))(controlnet, image)
    return (unet, controlnet), latents, t, high, low, features._replace(rgb_predictions=())


def project(unet: UNet, controlnet: ControlNet, high: Array, low: Array) -> tuple[Text, tuple[Text, Text]]:
    """The texts' keys and values, which are computed once for all steps."""
    return unet.project_text(high), (controlnet.project_text(high), controlnet.project_text(low))


def whole(networks: Networks, latents: Array, t: Array, high: Array, low: Array, features: ImageFeatures) -> Array:
    """A guided step whose two halves share nothing."""
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


def alone(
    networks: Networks, latents: Array, t: Array, text: Text, texts: tuple[Text, Text], features: ImageFeatures
) -> Array:
    """A step without guidance."""
    unet, controlnet = networks
    control = controlnet(latents, t, *texts, features)
    prediction: Array = unet(latents, t, text, control.residuals, control.mid)
    return prediction


def keeping(
    networks: Networks,
    latents: Array,
    t: Array,
    text: Text,
    texts: tuple[Text, Text],
    features: ImageFeatures,
    *,
    layers: int,
) -> tuple[Array, KeptFeatures]:
    """A step like `shared`. Also returns the features for `from_kept`."""
    unet, controlnet = networks
    control = controlnet(latents, t, *texts, features)
    prediction, kept = unet.predict_and_keep(latents, t, text, control.residuals, control.mid, outer_layers=layers)
    return halved(prediction), kept


def from_kept(unet: UNet, latents: Array, t: Array, text: Text, kept: KeptFeatures, *, layers: int) -> Array:
    """A step that computes only the outermost layers."""
    return halved(unet.predict_from_kept(latents, t, text, kept, outer_layers=layers))


def halved(prediction: Array) -> Array:
    """The prediction for one half or two halves."""
    return guided(prediction) if len(prediction) > 1 else prediction


def guided(prediction: Array) -> Array:
    return guide(prediction[::2], prediction[1::2], scale=5.5, form="paper", rescale=0.0)


PARTS: dict[str, Callable[[], dict[str, Figures]]] = {
    "stock": stock,
    **{name: functools.partial(xpsr, name) for name in ("c", "c'", "d")},
    "kept": with_features_kept,
}


def measure(run: Run, *, compiled: bool = False) -> Figures:
    """CPU seconds and seconds of a compiled run, and the bytes that it needs in addition to those held before."""
    if not compiled:
        run()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    held, cpu, clock = resident("VmRSS"), time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - clock, resident("VmHWM") - held


def resident(field: str) -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=[*PARTS], help='parts to measure; "kept" is (e) to (h)'
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        use_compilation_cache()
        print(json.dumps(PARTS[arguments.part]()))
        return
    found: dict[str, list[float]] = {}
    for part in arguments.parts * arguments.rounds:
        command = [sys.executable, __file__, "--part", part]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for name, figures in json.loads(output.splitlines()[-1]).items():
            print(name, figures, file=sys.stderr, flush=True)
            found[name] = np.minimum(found.get(name, figures), figures).tolist()
    for name, (cpu, clock, memory) in found.items():
        print(f"{name:3s} {cpu:8.2f} s of CPU {clock:8.2f} s {memory / 2**30:8.2f} GiB beyond the weights")
    for one, other in (("b", "a"), ("d", "c"), ("d", "c'"), ("h", "g")):
        if {one, other} <= found.keys():
            print(f"{one} = {found[one][0] / found[other][0]:.3f} x {other}")
    if "g" in found:
        step = found["g"][0] / STEPS
        for name in ("e", "e1", "e2", "e3", "f1", "f2", "f3"):
            print(f"{name} = {found[name][0] / step:.3f} x a step of g")


if __name__ == "__main__":
    main()
