"""Serves the page."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import fastapi
import gradio as gr
import uvicorn
from gradio.routes import App
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount
from starlette.types import ASGIApp

from xpsr_jax.app.door import Door
from xpsr_jax.app.page import Page
from xpsr_jax.app.passwords import Password, checker
from xpsr_jax.app.sessions import Sessions
from xpsr_jax.errors import UserError

_CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto; }
/* It has links that lead out. */
footer { display: none !important; }
/* On a phone the result is right below the button, and the settings are below the result. */
@media (max-width: 700px) {
  .halves { display: grid !important; grid-template-columns: minmax(0, 1fr); }
  .half { display: contents !important; }
  .last-on-phones { order: 1; }
}
"""
# A browser opens six at most, of all its tabs together.
_CONNECTIONS_OF_A_SESSION = 8


def application(
    page: Page, sessions: Sessions, *, hosts: Sequence[str], root_path: str, passwords: dict[str, Password] | None
) -> ASGIApp:
    """The page behind its door.

    Args:
        hosts: names under which it may be opened; `*.name` is any below it, `*` any at all.
        root_path: where a proxy shows it, such as /xpsr; empty: at the top.
        passwords: by the names of those who may open the page; None: everybody may.
    """
    page.state_session_capacity = sessions.limits.sessions
    outer = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        outer,
        page,
        path="/",
        auth=None if passwords is None else checker(passwords),
        root_path=root_path,
        max_file_size=sessions.limits.upload_bytes,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=_CSS,
        footer_links=[],
        # An error in the program is nobody's business. Those for visitors are gr.Error, which are shown in any case.
        show_error=False,
        # Whatever the environment may ask of gradio: no node, no MCP server, no log of runs.
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        pwa=False,
        enable_monitoring=False,
    )
    # Gradio checks paths of pages only that it has launched itself.
    page.has_launched = True
    [gradio] = [route.app for route in outer.routes if isinstance(route, Mount) and isinstance(route.app, App)]

    def is_signed_in(cookies: dict[str, str]) -> bool:
        names = (f"access-token-{gradio.cookie_id}", f"access-token-unsecure-{gradio.cookie_id}")
        return any(cookies.get(name) in gradio.tokens for name in names)

    door = Door(outer, page=page, sessions=sessions, is_signed_in=None if passwords is None else is_signed_in)
    return TrustedHostMiddleware(door, allowed_hosts=list(hosts), www_redirect=False)


def serve(app: ASGIApp, listener: socket.socket, *, sessions: int) -> None:
    """Answers requests until SIGINT or SIGTERM, which it raises again when it has ended.

    Args:
        sessions: how many there may be; decides how many connections are answered.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        ws="none",
        limit_concurrency=64 + _CONNECTIONS_OF_A_SESSION * sessions,
        # Open pages hold connections that never end.
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address. Raises UserError, in one line, before anything that takes time has been done."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}, port {port}: {reason}; try another --port or --host") from error
    return listener


def allowed_hosts(host: str, names: Sequence[str], root_path: str) -> list[str]:
    """The names under which the page may be opened. Raises UserError if one cannot be.

    A web site that a visitor has open could otherwise point its own name at this machine (DNS rebinding) and use the
    page as the visitor does.

    Args:
        host: where the page listens.
        names: what else is allowed.
        root_path: may be a whole address, which is then allowed too.
    """
    for name in names:
        if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?", name):
            raise UserError(
                f"--allowed-hosts: {name} is no name of a machine; give names only, without https:// and port"
            )
    listens_everywhere = _is_unspecified(host)
    own = [socket.gethostname()] if listens_everywhere else [host]
    outside = urlsplit(root_path).hostname
    hosts = ["127.0.0.1", "localhost", "[::1]", *own, *([outside] if outside else []), *names]
    return [f"[{name}]" if ":" in name and not name.startswith("[") else name for name in dict.fromkeys(hosts)]


def checked_root_path(root_path: str) -> str:
    """The path without a slash at its end. Raises UserError if it is neither a path nor an address."""
    if root_path and not re.fullmatch(r"(https?://[^/\s]+)?(/[\w./~-]*)?", root_path):
        raise UserError(
            f"--root-path: {root_path} is neither a path such as /xpsr nor an address such as https://a.b/xpsr"
        )
    return root_path.rstrip("/")


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False
