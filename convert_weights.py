"""Converts weights into a model folder.

    python convert_weights.py SOURCE... --output DIR

Sources are folders in diffusers' layout with some of the subfolders unet/, controlnet/, vae/, text_encoder/, tokenizer/
and scheduler/, and safetensors files in them. Several are merged by component, later ones first choice: Stable
Diffusion 1.5's folder followed by XPSR's checkpoint-N makes a whole model. Old names of tensors become today's.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from xpsr_jax.errors import UserError


@dataclass(frozen=True)
class Arguments:
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE...")]
    """Folders to convert, later ones first choice."""
    output: Path
    """Folder to write. It appears when it is complete."""
    to: Literal["torch", "orbax"] = "torch"
    """torch: a model folder, which PyTorch and this package read. orbax: from the next release on."""
    dtype: Literal["same", "float32", "float16", "bfloat16"] = "same"
    """Type of the weights; same: as they are, bit for bit."""
    shard_gb: float | None = None
    """Start another file above this size, in GB (10^9 bytes)."""
    overwrite: bool = False
    """Replace an existing model folder."""


def main(arguments: Arguments) -> None:
    if arguments.to == "orbax":
        raise UserError("--to orbax comes with the next release; this one writes model folders (--to torch)")
    if not arguments.sources:
        raise UserError("name at least one folder to convert")
    # Imported late, so that --help is quick.
    from xpsr_jax.weights.convert import convert
    from xpsr_jax.weights.tensors import FLOATS

    done = convert(
        arguments.sources,
        arguments.output,
        dtype=FLOATS.get(arguments.dtype),
        shard_bytes=None if arguments.shard_gb is None else int(arguments.shard_gb * 1e9),
        overwrite=arguments.overwrite,
        progress=sys.stderr.isatty(),
    )
    for subfolder, source in done.sources.items():
        print(f"{subfolder + '/':14s} from {source}")
    print(f"{arguments.output}: {done.tensors:,} tensors, {done.parameters:,} parameters")
    if done.missing:
        missing = ", ".join(f"{name}/" for name in done.missing)
        print(f"To restore images it still needs {missing}: name a folder that has them as another source.")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
