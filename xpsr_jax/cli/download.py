"""Fetches a model of the Hugging Face hub, and says what came and how it is used.

    xpsr download stable-diffusion-v1-5

A model is owner/name, owner/name@revision or owner/name:folder, or one of the short names above. Wherever another
command takes a model folder it takes such a name too, and fetches by itself what it needs; this command is for fetching
beforehand, or into a folder.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from xpsr_jax.cli.groups import Grouped, grouped, parse
from xpsr_jax.cli.run import check_options, command
from xpsr_jax.errors import UserError, say

# Short names, and what each means.
SHORT = {
    "stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stable-diffusion-2-1": "stabilityai/stable-diffusion-2-1",
    "sd-vae-ft-mse": "stabilityai/sd-vae-ft-mse",
    "llava": "llava-hf/llava-1.5-7b-hf",
}
XPSR = """\
XPSR's own weights are not on the hub. Its authors keep them on a drive, to which the README of
https://github.com/qyp2000/XPSR leads:
  1. Open https://drive.google.com/drive/folders/1rzlHjp6DuiD7timULeDvmxSQignnMywS in a browser.
  2. Download the checkpoint: a folder such as checkpoint-300000, with unet/ and controlnet/ in it.
  3. Put it together with Stable Diffusion 1.5 into one model folder:
       xpsr convert stable-diffusion-v1-5/stable-diffusion-v1-5 checkpoint-300000 --output models/xpsr
  4. xpsr restore PHOTO --output restored --model models/xpsr --preset released"""


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        model: A name of the hub, or a short one: stable-diffusion-v1-5, stable-diffusion-2-1, sd-vae-ft-mse, llava; for
            xpsr it says where its authors keep it.
        output: Also copy the files into this folder, which must not exist. Otherwise they are in the cache of the hub's
            client alone.
        variant: The weights of this variant, such as fp16, where a component has it.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the cache)")] = None
    variant: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the plain files)")] = (
        None
    )


@command(interrupted="interrupted; the same command goes on from here", lower="close other programs")
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 after an error, 130 if interrupted."""
    return download(parse(arguments(), argv, name="download", text=__doc__))


def arguments() -> type[Grouped[Arguments]]:
    """What a command line is parsed to."""
    return grouped(Arguments, {})


def download(arguments: Arguments) -> int:
    """Fetches, and prints what came; returns the exit code. Raises UserError."""
    check_options(arguments)
    if arguments.model.lower() == "xpsr":
        say(XPSR)
        return 1
    from xpsr_jax.files import check_free, new_folder
    from xpsr_jax.weights import hub

    full = SHORT.get(arguments.model, arguments.model)
    name = hub.parsed(full)
    if name is None:
        raise UserError(f"{full} is no name of the hub: say owner/name, or one of {', '.join([*SHORT, 'xpsr'])}")
    if arguments.output is not None:
        check_free(arguments.output)
    files = hub.fetch(name, variant=arguments.variant)
    size = sum(file.stat().st_size for file in files.values())
    for path, file in files.items():
        say(f"{file.stat().st_size / 1e6:12,.1f} MB  {path}")
    pinned = hub.pinned_name(name)
    say(f"{pinned}: {len(files)} files, {size / 1e6:,.1f} MB")
    if arguments.output is None:
        say(f"They are in the cache. Name the model as {pinned.repository}, or, to keep to this state, as {pinned}.")
        return 0
    with new_folder(arguments.output) as folder:
        for path, file in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / path)
    say(f"They are copied to {arguments.output}")
    return 0
