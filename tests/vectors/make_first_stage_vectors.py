"""Makes tests/vectors/first_stage.safetensors: small random RRDBNets of the package spandrel, with inputs and outputs.

Run manually in an environment with torch. The tests only read the result and do not need torch. It was run with
torch 2.13.0 (CPU), spandrel 0.4.2, safetensors 0.8.0:

    python -m tests.vectors.make_first_stage_vectors

`body.*` are the tensors of the blocks, which are the same in all cases. The other tensors of a case are `CASE.model.*`
(with the names of ESRGAN's first release), `CASE.in` and `CASE.out` (NCHW, in [0, 1]). Weights and inputs are rounded
to float16; outputs are computed in float64.
"""

import importlib
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.torch.with_spandrel import import_spandrel

FILE = Path(__file__).parent / "first_stage.safetensors"
# Scale, unshuffle, size of the input.
CASES = {"x4": (4, 1, (5, 6)), "x2": (2, 2, (7, 6)), "x1": (1, 4, (9, 10)), "x2_plain": (2, 1, (5, 4))}


def network(scale: int, unshuffle: int, *, features: int = 4, blocks: int = 1) -> torch.nn.Module:
    """A network of spandrel with these sizes."""
    import_spandrel()
    rrdb = importlib.import_module("spandrel.architectures.ESRGAN.__arch.RRDB")
    return rrdb.RRDBNet(
        in_nc=3 * unshuffle**2,
        num_filters=features,
        num_blocks=blocks,
        scale=scale * unshuffle,
        shuffle_factor=unshuffle if unshuffle > 1 else None,
    )


def main() -> None:
    generator, tensors = torch.Generator().manual_seed(0), {}
    for case, (scale, unshuffle, size) in CASES.items():
        module = network(scale, unshuffle)
        for name, parameter in module.named_parameters():
            is_body = ".RDB" in name
            if is_body and f"body.{name}" in tensors:
                parameter.data = tensors[f"body.{name}"].float()
                continue
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            value = (torch.randn(parameter.shape, generator=generator) * fan_in**-0.5).half()
            parameter.data = value.float()
            tensors[f"body.{name}" if is_body else f"{case}.{name}"] = value
        image = torch.rand((2, 3, *size), generator=generator).half()
        with torch.no_grad():
            out = module.double().eval()(image.double())
        tensors |= {f"{case}.in": image, f"{case}.out": out.float()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, FILE)


if __name__ == "__main__":
    main()
