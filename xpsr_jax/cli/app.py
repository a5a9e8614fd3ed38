"""A web page that restores photographs with XPSR.

    xpsr app        # then open http://127.0.0.1:7860

Needs gradio: pip install "xpsr-jax[app]". No data leave this machine. Uploads and results are deleted at the end.
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
    """The command line. Sampling settings are chosen on the page.

    Attributes:
        model: The model.
        host: Address to listen on. With 0.0.0.0, everybody who can reach this machine can use the page: set --auth, and
            see docs/start/page.md.
        port: Port to listen on.
        allowed_hosts: Additional host names of the page, such as example.org, *.example.org or 192.168.1.7; * allows
            any. 127.0.0.1, localhost and --host are always allowed.
        root_path: Address of the page behind a proxy: a path such as /xpsr, or the whole URL.
        auth: File with names and hashes of passwords; python -m xpsr_jax.app.passwords NAME >> FILE adds one.
        max_upload_megabytes: Larger files are refused.
        max_megapixels: Images that are larger, before or after restoring, are refused.
        max_files: Most files in one batch, on the page's second tab.
        max_queue: Most requests that may wait while a photograph is restored; more are refused.
        max_sessions: Most open browser tabs; more are refused.
        max_all_uploads_megabytes: Limit of the uploads of all visitors together.
        max_disk_megabytes: Limit of the uploads and results of all visitors together, in the folder for temporary
            files.
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
    interrupted="The page was closed.",
    lower="lower --max-megapixels, or use --dtype bfloat16",
)
def main(argv: Sequence[str] | None) -> None:
    """Runs the command line; returns the exit code: 1 after an error, 130 after Ctrl-C."""
    run(parse(arguments(), argv, name="app", text=__doc__))


def arguments() -> type[Grouped[Arguments]]:
    """The type that a command line is parsed into."""
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
    # Gradio reads these variables when it is imported. Only the command line decides here.
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="xpsr-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        serve_page(arguments, Path(folder), limits, max_pixels=max_pixels)


def serve_page(arguments: Arguments, folder: Path, limits: Limits, *, max_pixels: int) -> None:
    """Serves the page of a model. Raises UserError, where possible before the model is loaded.

    Args:
        arguments: the command line.
        folder: folder for uploads and results.
        limits: limits for all visitors together.
        max_pixels: limit of a photograph, before and after restoring.
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
        say(f"The page: http://{host}:{listener.getsockname()[1]}/ (Ctrl-C closes it)")
        say(f"Browsers may open it as {', '.join(hosts)}; other names need --allowed-hosts.")
        serve(app, listener, sessions=limits.sessions)
