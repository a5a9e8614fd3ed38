"""What stands between the network and Gradio: only requests that the page itself makes come through.

Gradio has some fifty routes: it fetches addresses, passes requests on, shows its functions as an API. The page needs a
dozen of them. Of an event the door makes anew what Gradio sees, from the values that an event of the page can have.
Everything else is refused with the same answer, so nothing about the server can be learnt from it.
"""

import json
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xpsr_jax.app.sessions import NAME, REFUSED, Full, Refused, Sessions

MAX_EVENT_BYTES = 1_000_000
MAX_LOGIN_BYTES = 10_000
MAX_TEXT = 10_000

_API = "/gradio_api"
_SHOWN_TO_ALL = re.compile(r"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(static|assets)/.+")
_EVENTS = {f"{_API}/queue/join", f"{_API}/run/predict"}


class Door:
    """ASGI middleware around the whole application.

    Args:
        app: what answers the requests that come through.
        page: whose events are known.
        sessions: of the visitors.
        is_signed_in: says by its cookies whether a visitor has given a password; None: nobody needs one.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        page: gr.Blocks,
        sessions: Sessions,
        is_signed_in: Callable[[dict[str, str]], bool] | None,
    ) -> None:
        self._app = app
        self._page = page
        self._sessions = sessions
        self._is_signed_in = is_signed_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on to the application, or refuses it.

        A refused request is answered with one line of JSON: status 400, or 503 where the page is full. Web sockets,
        which the page does not use, get no answer.

        Args:
            scope: what ASGI says of the connection, the path and the headers among it.
            receive: gives the parts of the request's body.
            send: takes the parts of the answer.
        """
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] == "http":  # The page has no web sockets.
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        async def refuse(status: int, text: str) -> None:
            # What is on its way stays unread, so the connection cannot be used again.
            response = JSONResponse({"detail": text}, status, headers={"Connection": "close"})
            await response(scope, receive, send)

        try:
            with ExitStack() as stack:
                receive = await self._let_in(scope, receive, stack)
                await self._app(scope, receive, sending)
        except Refused:
            await refuse(400, REFUSED)
        except Full as error:
            await refuse(503, str(error))
        except Exception as error:
            # Of events Gradio itself reports what went wrong in our functions. What comes here is a request that is
            # wrong in a way that nobody thought of, or a visitor who has left.
            print(f"error: {scope['method']} {scope['path'][:80]!r} failed: {type(error).__name__}", flush=True)
            if begun:
                await send({"type": "http.response.body", "body": b""})
            else:
                await refuse(400, REFUSED)

    async def _let_in(self, scope: Scope, receive: Receive, stack: ExitStack) -> Receive:
        """What Gradio may receive of a request. Raises Refused and Full.

        Args:
            stack: for what is to be undone when the request has been answered.
        """
        method, path, headers = scope["method"], scope["path"], Headers(scope=scope)
        if method in ("GET", "HEAD") and _SHOWN_TO_ALL.fullmatch(path):
            return receive
        if method == "POST" and _is_foreign(headers):
            raise Refused
        if (method, path) == ("POST", "/login") and self._is_signed_in is not None:
            return _again(await _body(receive, MAX_LOGIN_BYTES), receive)
        if self._is_signed_in is not None and not self._is_signed_in(_cookies(headers)):
            raise Refused
        if method == "POST" and path == f"{_API}/upload":
            stack.enter_context(self._sessions.arriving(_length(headers)))
            return receive
        if method == "POST" and path in _EVENTS:
            event = self._event(await _body(receive, MAX_EVENT_BYTES))
            self._sessions.of(event["session_hash"])  # Raises Full where Gradio would make room without an end.
            body = json.dumps(event).encode()
            replaced = {b"content-type": b"application/json", b"content-length": str(len(body)).encode()}
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in replaced] + list(replaced.items())
            return _again(body, receive)
        if method in ("GET", "HEAD") and self._may_read(scope, path, stack):
            return receive
        raise Refused

    def _may_read(self, scope: Scope, path: str, stack: ExitStack) -> bool:
        if path.startswith(f"{_API}/file="):
            return self._is_shown(path.removeprefix(f"{_API}/file="))
        if path == f"{_API}/queue/data":
            return _only(scope, "session_hash") in self._sessions
        if path == f"{_API}/upload_progress":
            return bool(NAME.fullmatch(_only(scope, "upload_id")))
        heartbeat = re.fullmatch(rf"{_API}/heartbeat/({NAME.pattern})", path)
        if heartbeat:
            stack.enter_context(self._sessions.of(heartbeat[1]).connected())
        return bool(heartbeat)

    def _is_shown(self, path: str) -> bool:
        """Whether it is a file that a visitor may have been told of. The names of its folders cannot be guessed."""
        try:
            file = Path(path).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            return False
        return file.is_file() and file.is_relative_to(self._sessions.folder) and file.parent != self._sessions.folder

    def _event(self, body: bytes) -> dict[str, Any]:
        """An event of the page, made anew of what was sent. Raises Refused."""
        try:
            sent = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused from error
        if not isinstance(sent, dict):
            raise Refused
        index, session, data = (sent.get(name) for name in ("fn_index", "session_hash", "data"))
        function = self._page.fns.get(index) if type(index) is int else None
        if function is None or not isinstance(session, str) or not NAME.fullmatch(session):
            raise Refused
        if not isinstance(data, list) or len(data) != len(function.inputs):
            raise Refused
        is_upload = any(event == "upload" for _, event in function.targets)
        trigger, details = sent.get("trigger_id"), sent.get("event_data")
        chosen = details.get("index") if isinstance(details, dict) else None
        return {
            "fn_index": index,
            "session_hash": session,
            "data": [self._files(value) if is_upload else _value(value) for value in data],
            "trigger_id": trigger if type(trigger) is int else None,
            # Of what was clicked only the number is used.
            "event_data": {"index": chosen if type(chosen) is int else None, "value": None},
        }

    def _files(self, value: object) -> object:
        """One upload or several, as Gradio names them. Raises Refused."""
        if isinstance(value, list):
            return [self._files(each) for each in value]
        if not isinstance(value, dict):
            raise Refused
        return {"path": str(self._sessions.uploaded(value.get("path"))), "meta": {"_type": "gradio.FileData"}}


def _value(value: object) -> object:
    """What a field of the page can hold: text, a number, yes or no, nothing. Raises Refused."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) < 2**64 and math.isfinite(value):
        return value
    if isinstance(value, str) and len(value) <= MAX_TEXT and not re.search("[\0\ud800-\udfff]", value):
        return value
    raise Refused


def _is_foreign(headers: Headers) -> bool:
    """Whether a page of another site asks, which a visitor has open in the same browser."""
    if "origin" not in headers:
        return False
    ours = [headers.get(name, "").partition(",")[0].strip().lower() for name in ("host", "x-forwarded-host")]
    origin = headers["origin"].partition("://")[2].lower()
    return not origin or origin not in ours


def _cookies(headers: Headers) -> dict[str, str]:
    try:
        return {name: cookie.value for name, cookie in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


def _length(headers: Headers) -> int:
    """The size of what is coming, in bytes. Raises Refused if it is not said; the server holds the sender to it."""
    length = headers.get("content-length", "")
    if not re.fullmatch("[0-9]{1,15}", length) or "transfer-encoding" in headers:
        raise Refused
    return int(length)


def _only(scope: Scope, name: str) -> str:
    """The one value of this name in the address; empty if there is none, or are several."""
    values = parse_qs(scope["query_string"].decode("latin-1")).get(name, [])
    return values[0] if len(values) == 1 else ""


async def _body(receive: Receive, max_bytes: int) -> bytes:
    """The whole body of a request. Raises Refused if it is larger."""
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise Refused
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Receives a body that has been read already, then what follows it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
