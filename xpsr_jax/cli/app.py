"""A web page that restores photographs with XPSR.

python -m xpsr_jax.app        # then open http://127.0.0.1:7860

Needs gradio: pip install "xpsr-jax[app]". Nothing leaves this machine, and uploads and results are deleted at the end.
"""

import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from xpsr_jax.cli.model_options import ModelOptions
from xpsr_jax.cli.run import command
from xpsr_jax.errors import UserError
from xpsr_jax.images.reading import limit_from_millions


@dataclass(frozen=True)
class Arguments:
    """How samples are made is chosen on the page.

    Attributes:
        model: The model.
        host: Address to listen on. 0.0.0.0 lets everybody in who can reach this machine: there is no password.
        port: Port to listen on.
        max_upload_megabytes: Larger files are refused.
        max_megapixels: Larger images are refused, and those that would be larger when restored.
        max_files: Files to restore at one go, on the page's second tab.
        max_queue: How many may wait while a photograph is restored; further ones are turned away.
    """

    model: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes] = ModelOptions()

    host: str = "127.0.0.1"
    port: int = 7860
    max_upload_megabytes: float = 64
    max_megapixels: float = 16
    max_files: int = 100
    max_queue: int = 8


@command(
    "xpsr_jax.app",
    interrupted="The page has ended.",
    lower="lower --max-megapixels, or take --dtype bfloat16",
)
def main(argv: Sequence[str] | None) -> None:
    """Runs the command line; returns the exit code: 1 after an error, 130 when it was ended."""
    run(tyro.cli(Arguments, args=argv, description=__doc__, prog="python -m xpsr_jax.app"))


def run(arguments: Arguments) -> None:
    """Serves the page until it is interrupted. Raises UserError."""
    if find_spec("gradio") is None:
        raise UserError('the page needs gradio: pip install "xpsr-jax[app]"')
    max_upload = limit_from_millions("--max-upload-megabytes", arguments.max_upload_megabytes)
    max_pixels = limit_from_millions("--max-megapixels", arguments.max_megapixels)
    for name in ("max_files", "max_queue"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0, not {getattr(arguments, name)}")
    check_address(arguments.host, arguments.port)
    from xpsr_jax.app.studio import Studio
    from xpsr_jax.inference.compilation import use_compilation_cache, use_tpu_flags

    use_compilation_cache()
    use_tpu_flags()
    model = arguments.model.load()
    with tempfile.TemporaryDirectory(prefix="xpsr-page-") as folder:
        # gradio reads both when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from xpsr_jax.app.page import build_page, launch

        studio = Studio(model, max_pixels=max_pixels)
        page = build_page(studio, Path(folder), max_files=arguments.max_files, max_queue=arguments.max_queue)
        address = launch(page, arguments.host, arguments.port, max_file_size=max_upload)
        print(f"The page: {address} (Ctrl-C ends it)", flush=True)
        page.block_thread()


def check_address(host: str, port: int) -> None:
    """Raises UserError if nothing can listen there: before the model is loaded, and in one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}, port {port}: {reason}; try another --port or --host") from error
