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
/* The footer has links to other sites. */
footer { display: none !important; }
/* On a phone, the result is directly below the button, and the settings are below the result. */
@media (max-width: 700px) {
  .halves { display: grid !important; grid-template-columns: minmax(0, 1fr); }
  .half { display: contents !important; }
  .last-on-phones { order: 1; }
}
"""
# A browser opens at most six connections to a host, over all its tabs.
_CONNECTIONS_OF_A_SESSION = 8


def application(
    page: Page, sessions: Sessions, *, hosts: Sequence[str], root_path: str, passwords: dict[str, Password] | None
) -> ASGIApp:
    """Returns the page behind its door.

    Args:
        page: the page.
        sessions: the visitors' sessions.
        hosts: host names under which the page may be opened. `*.name` allows all names below it, `*` allows all names.
        root_path: the path at which a proxy shows the page, for example /xpsr. Empty: at the root.
        passwords: passwords by user name. None: everybody may open the page.
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
        # Internal errors are not shown to visitors. Errors for visitors are gr.Error, which Gradio always shows.
        show_error=False,
        # These override Gradio's environment variables: no node, no MCP server, no log of runs.
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        pwa=False,
        enable_monitoring=False,
    )
    # Gradio checks the paths of a page only if it launched the page itself.
    page.has_launched = True
    [gradio] = [route.app for route in outer.routes if isinstance(route, Mount) and isinstance(route.app, App)]

    def is_signed_in(cookies: dict[str, str]) -> bool:
        names = (f"access-token-{gradio.cookie_id}", f"access-token-unsecure-{gradio.cookie_id}")
        return any(cookies.get(name) in gradio.tokens for name in names)

    door = Door(outer, page=page, sessions=sessions, is_signed_in=None if passwords is None else is_signed_in)
    return TrustedHostMiddleware(door, allowed_hosts=list(hosts), www_redirect=False)


def serve(app: ASGIApp, listener: socket.socket, *, sessions: int) -> None:
    """Answers requests until SIGINT or SIGTERM. It raises the signal again after it has shut down.

    Args:
        app: the application.
        listener: the socket to listen on.
        sessions: the most sessions. The limit of connections depends on it.
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
    """Opens a socket at this address. Raises UserError if that fails. Call it before work that takes time."""
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
    """The host names under which the page may be opened. Raises UserError if one is not a host name.

    Without this check, a web site in the visitor's browser could point its own name to this machine (DNS rebinding).
    Then it could use the page with the visitor's rights.

    Args:
        host: the address on which the page listens.
        names: other allowed names.
        root_path: a path or a whole URL. The host of a URL is allowed too.
    """
    for name in names:
        if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?", name):
            raise UserError(
                f"--allowed-hosts: {name} is not a host name; give only the name, without https:// and port"
            )
    listens_everywhere = _is_unspecified(host)
    own = [socket.gethostname()] if listens_everywhere else [host]
    outside = urlsplit(root_path).hostname
    hosts = ["127.0.0.1", "localhost", "[::1]", *own, *([outside] if outside else []), *names]
    return [f"[{name}]" if ":" in name and not name.startswith("[") else name for name in dict.fromkeys(hosts)]


def checked_root_path(root_path: str) -> str:
    """The path without a slash at its end. Raises UserError if it is neither a path nor a URL."""
    if root_path and not re.fullmatch(r"(https?://[^/\s]+)?(/[\w./~-]*)?", root_path):
        raise UserError(f"--root-path: {root_path} is neither a path such as /xpsr nor a URL such as https://a.b/xpsr")
    return root_path.rstrip("/")


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False
