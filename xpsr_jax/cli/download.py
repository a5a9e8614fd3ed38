"""Downloads a model from the Hugging Face hub, and lists its files.

    xpsr download stable-diffusion-v1-5

A model is owner/name, owner/name@revision or owner/name:folder, or one of the short names below. Other commands accept
such a name instead of a model folder, and download the files that they need. Use this command to download in advance,
or into a folder.
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

# Short names, and the full names on the hub.
SHORT = {
    "stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stable-diffusion-2-1": "stabilityai/stable-diffusion-2-1",
    "sd-vae-ft-mse": "stabilityai/sd-vae-ft-mse",
    "llava": "llava-hf/llava-1.5-7b-hf",
}
XPSR = """\
XPSR's own weights are not on the hub. Its authors keep them on a drive, which is linked in the README of
https://github.com/qyp2000/XPSR:
  1. Open https://drive.google.com/drive/folders/1rzlHjp6DuiD7timULeDvmxSQignnMywS in a browser.
  2. Download the checkpoint: a folder such as checkpoint-300000, with unet/ and controlnet/ in it.
  3. Merge it with Stable Diffusion 1.5 into one model folder:
       xpsr convert stable-diffusion-v1-5/stable-diffusion-v1-5 checkpoint-300000 --output models/xpsr
  4. xpsr restore PHOTO --output restored --model models/xpsr --preset released --missing-captions measured"""


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        model: Name on the hub, or a short name: stable-diffusion-v1-5, stable-diffusion-2-1, sd-vae-ft-mse, llava. For
            xpsr, the command explains where to get the weights.
        output: Copy the files into this new folder, too. Otherwise they are only in the cache of the hub's client.
        variant: Download the weights of this variant, such as fp16, of components that have it.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the cache)")] = None
    variant: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the plain files)")] = (
        None
    )


@command(interrupted="interrupted; run the same command again to resume", lower="close other programs")
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 after an error, 130 if interrupted."""
    return download(parse(arguments(), argv, name="download", text=__doc__))


def arguments() -> type[Grouped[Arguments]]:
    """The type that a command line is parsed into."""
    return grouped(Arguments, {})


def download(arguments: Arguments) -> int:
    """Downloads a model and lists its files; returns the exit code. Raises UserError."""
    check_options(arguments)
    if arguments.model.lower() == "xpsr":
        say(XPSR)
        return 1
    from xpsr_jax.files import check_free, new_folder
    from xpsr_jax.weights import hub

    full = SHORT.get(arguments.model, arguments.model)
    name = hub.parsed(full)
    if name is None:
        raise UserError(f"{full} is not a name on the hub: use owner/name, or one of {', '.join([*SHORT, 'xpsr'])}")
    if arguments.output is not None:
        check_free(arguments.output)
    files = hub.fetch(name, variant=arguments.variant)
    size = sum(file.stat().st_size for file in files.values())
    for path, file in files.items():
        say(f"{file.stat().st_size / 1e6:12,.1f} MB  {path}")
    pinned = hub.pinned_name(name)
    say(f"{pinned}: {len(files)} files, {size / 1e6:,.1f} MB")
    if arguments.output is None:
        say(f"They are in the cache. Use the model as {pinned.repository}, or as {pinned} to stay with this commit.")
        return 0
    with new_folder(arguments.output) as folder:
        for path, file in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / path)
    say(f"They were copied to {arguments.output}")
    return 0
