"""Converts weights of any format into a model folder.

    xpsr convert SOURCE... --output DIR

A SOURCE is one of these: a folder in diffusers' layout with some of the subfolders unet/, controlnet/, vae/,
text_encoder/, tokenizer/ and scheduler/ (with files of PyTorch, Flax or Orbax); a single file of Stable Diffusion 1
or 2 (.safetensors, .ckpt); a model on the Hugging Face hub (owner/name, owner/name@revision, owner/name:folder); or a
checkpoint of xpsr train (runs/NAME).

Several sources are merged. Where several have the same component, the last one is used. For example, Stable Diffusion
1.5 and then XPSR's checkpoint-N make a complete model. Old names of tensors are replaced by the current ones.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from xpsr_jax.cli.groups import Grouped, Groups, grouped, parse
from xpsr_jax.cli.run import check_options, command
from xpsr_jax.errors import say
from xpsr_jax.serialisation import Range


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        sources: Folders and files to convert. Where several have the same component, the last one is used.
        output: Folder to write. It appears only when it is complete.
        to: torch: safetensors, which PyTorch and this package read. orbax: for restoring directly onto many devices.
        dtype: Type of the weights; same: unchanged, bit for bit.
        variant: Variant of the weight files: --variant fp16 reads model.fp16.safetensors. Components without this
            variant are read from the plain files.
        ema: Use the averaged UNet of a single file, if it has one in addition to the trained one.
        average: For a checkpoint of xpsr train, use the moving average of the trained parameters if the run has one, as
            the run's own export does. --no-average: use the parameters themselves.
        base_unet: Another Stable Diffusion 1.5, in any of the formats of a SOURCE. XPSR keeps its trained parts
            (ControlNet and Conditional Attention); all frozen tensors (UNet, autoencoder, text encoder) are replaced.
        lora: LoRA file to merge into the UNet and the text encoder, with its strength after a colon: --lora
            style.safetensors:0.7. The option can be repeated.
        shard_gb: Start another safetensors file above this size, in GB (10^9 bytes).
        verify: Before the folder appears, read everything again, and compare all tensors and the outputs of each
            network.
        overwrite: Replace an existing model folder.
    """

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE...")]
    output: Path
    to: Literal["torch", "orbax"] = "torch"
    dtype: Literal["same", "float32", "float16", "bfloat16"] = "same"
    variant: Annotated[str | None, tyro.conf.arg(help_behavior_hint="(default: the plain files)")] = None
    ema: bool = False
    average: bool = True
    base_unet: Annotated[
        Path | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(default: that of the sources)")
    ] = None
    lora: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE[:STRENGTH]")] = ()
    shard_gb: Annotated[
        Annotated[float, Range(0, above=True)] | None,
        tyro.conf.arg(help_behavior_hint="(default: one file for a network)"),
    ] = None
    verify: bool = False
    overwrite: bool = False


_GROUPS: Groups = {
    "files": ("sources", "output", "variant", "base_unet", "lora", "overwrite"),
    "weights": ("to", "dtype", "ema", "average", "shard_gb", "verify"),
}


@command(
    interrupted="interrupted; nothing was written",
    lower="convert fewer networks at a time, or leave out --verify",
)
def main(argv: Sequence[str] | None) -> None:
    """Runs the command line; returns the exit code: 0, 1 after an error, 130 if interrupted."""
    convert_weights(parse(arguments(), argv, name="convert", text=__doc__))


def arguments() -> type[Grouped[Arguments]]:
    """The type that a command line is parsed into."""
    return grouped(Arguments, _GROUPS)


def convert_weights(arguments: Arguments) -> None:
    """Converts, and prints where each component came from. Raises UserError."""
    check_options(arguments)
    # Imported late, so that --help is fast.
    from xpsr_jax.training.conversion import open_weights
    from xpsr_jax.weights.convert import convert
    from xpsr_jax.weights.hub import shown
    from xpsr_jax.weights.lora_files import split_strength
    from xpsr_jax.weights.sources import SUBFOLDERS, lacking_variant, merge
    from xpsr_jax.weights.tensors import FLOATS

    sources = open_weights(
        arguments.sources,
        variant=arguments.variant,
        ema=arguments.ema,
        average=arguments.average,
        base_unet=arguments.base_unet,
        loras=[split_strength(text) for text in arguments.lora],
    )
    lacking = lacking_variant(merge(sources), arguments.variant) if arguments.variant else []
    done = convert(
        sources,
        arguments.output,
        to=arguments.to,
        dtype=FLOATS.get(arguments.dtype),
        shard_bytes=None if arguments.shard_gb is None else int(arguments.shard_gb * 1e9),
        verify=arguments.verify,
        overwrite=arguments.overwrite,
        progress=sys.stderr.isatty(),
    )
    plain = {SUBFOLDERS[name] for name in lacking}
    for subfolder, source in done.sources.items():
        note = f" (it has no {arguments.variant} files)" if subfolder in plain else ""
        say(f"{subfolder + '/':14s} from {shown(source)}{note}")
    for line in done.history:
        say(line)
    verified = ", verified" if arguments.verify else ""
    say(f"{arguments.output}: {done.tensors:,} tensors, {done.parameters:,} parameters{verified}")
    if done.missing:
        missing = ", ".join(f"{name}/" for name in done.missing)
        say(f"To restore images, the model still needs {missing}. Name a folder with them as another source.")
