"""A web page that restores photographs with XPSR.

    xpsr app        # then open http://127.0.0.1:7860

Needs gradio: pip install "xpsr-jax[app]". Nothing leaves this machine, and uploads and results are deleted at the end.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from xpsr_jax.app.passwords import read_passwords
from xpsr_jax.app.sessions import Limits, Sessions
from xpsr_jax.cli.groups import Grouped, Groups, grouped, parse
from xpsr_jax.cli.model_options import ModelOptions
from xpsr_jax.cli.run import command
from xpsr_jax.errors import UserError, say
from xpsr_jax.images.limits import limit_from_millions


@dataclass(frozen=True)
class Arguments:
    """How samples are made is chosen on the page.

    Attributes:
        model: The model.
        host: Address to listen on. 0.0.0.0 lets everybody in who can reach this machine: give --auth, and see
            docs/start/page.md.
        port: Port to listen on.
        allowed_hosts: Further names under which browsers may open the page, such as example.org, *.example.org or
            192.168.1.7; * is any. 127.0.0.1, localhost and --host are allowed.
        root_path: Where a proxy in front shows the page: a path such as /xpsr, or the whole address.
        auth: Names and hashes of passwords; python -m xpsr_jax.app.passwords NAME >> FILE adds one.
        max_upload_megabytes: Larger files are refused.
        max_megapixels: Larger images are refused, and those that would be larger when restored.
        max_files: Files to restore at one go, on the page's second tab.
        max_queue: How many may wait while a photograph is restored; further ones are turned away.
        max_sessions: Browser tabs at a time; further ones are turned away.
        max_all_uploads_megabytes: All visitors' uploads together.
        max_disk_megabytes: All visitors' uploads and results together, in the folder for temporary files.
    """

    model: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes] = ModelOptions()

    host: str = "127.0.0.1"
    port: int = 7860
    allowed_hosts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = ()
    root_path: str = ""
    auth: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: no password)")] = None
    max_upload_megabytes: float = 64
    max_megapixels: float = 16
    max_files: int = 100
    max_queue: int = 8
    max_sessions: int = 32
    max_all_uploads_megabytes: float = 1000
    max_disk_megabytes: float = 4000


_GROUPS: Groups = {
    "model": (),
    "address": ("host", "port", "allowed_hosts", "root_path", "auth"),
    "limits": (
        "max_upload_megabytes",
        "max_megapixels",
        "max_files",
        "max_queue",
        "max_sessions",
        "max_all_uploads_megabytes",
        "max_disk_megabytes",
    ),
}


@command(
    interrupted="The page has ended.",
    lower="lower --max-megapixels, or take --dtype bfloat16",
)
def main(argv: Sequence[str] | None) -> None:
    """Runs the command line; returns the exit code: 1 after an error, 130 when it was ended."""
    run(parse(arguments(), argv, name="app", text=__doc__))


def arguments() -> type[Grouped[Arguments]]:
    """What a command line is parsed to."""
    return grouped(Arguments, _GROUPS)


def run(arguments: Arguments) -> None:
    """Serves the page until it is interrupted. Raises UserError."""
    if find_spec("gradio") is None:
        raise UserError('the page needs gradio: pip install "xpsr-jax[app]"')
    limits = Limits(
        arguments.max_sessions,
        limit_from_millions("--max-upload-megabytes", arguments.max_upload_megabytes),
        limit_from_millions("--max-all-uploads-megabytes", arguments.max_all_uploads_megabytes),
        limit_from_millions("--max-disk-megabytes", arguments.max_disk_megabytes),
    )
    max_pixels = limit_from_millions("--max-megapixels", arguments.max_megapixels)
    for name in ("max_files", "max_queue", "max_sessions"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0, not {getattr(arguments, name)}")
    # Gradio reads them when it is imported; the command line alone decides.
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="xpsr-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        serve_page(arguments, Path(folder), limits, max_pixels=max_pixels)


def serve_page(arguments: Arguments, folder: Path, limits: Limits, *, max_pixels: int) -> None:
    """Serves the page of a model. Raises UserError, if it can before the model is loaded.

    Args:
        arguments: the command line.
        folder: for what visitors upload and what becomes of it.
        limits: for all visitors together.
        max_pixels: of a photograph, before and after.
    """
    from xpsr_jax.app.page import build_page
    from xpsr_jax.app.server import allowed_hosts, application, checked_root_path, listen, serve
    from xpsr_jax.app.studio import Studio
    from xpsr_jax.inference.compilation import use_compilation_cache, use_tpu_flags

    root_path = checked_root_path(arguments.root_path)
    hosts = allowed_hosts(arguments.host, arguments.allowed_hosts, root_path)
    passwords = None if arguments.auth is None else read_passwords(arguments.auth)
    with listen(arguments.host, arguments.port) as listener:
        use_compilation_cache()
        use_tpu_flags()
        studio = Studio(arguments.model.load(), max_pixels=max_pixels)
        sessions = Sessions(folder, limits)
        page = build_page(studio, sessions, max_files=arguments.max_files, max_queue=arguments.max_queue)
        app = application(page, sessions, hosts=hosts, root_path=root_path, passwords=passwords)
        listener.listen()
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        say(f"The page: http://{host}:{listener.getsockname()[1]}/ (Ctrl-C ends it)")
        say(f"Browsers may open it as {', '.join(hosts)}; others need --allowed-hosts.")
        serve(app, listener, sessions=limits.sessions)
