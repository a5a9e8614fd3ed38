"""A filter between the network and Gradio: only requests that the page itself makes can pass.

Gradio has about fifty routes: it fetches URLs, forwards requests, offers its functions as an API. The page needs about
ten of them. For an event, the door builds a new body for Gradio, from only those values that an event of the page can
have. Every other request gets the same refusal, so it reveals nothing about the server.
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
        app: the application that answers accepted requests.
        page: the page whose events are accepted.
        sessions: the visitors' sessions.
        is_signed_in: tells from the cookies whether a visitor has signed in. None: no password is needed.
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

        A refused request is answered with one line of JSON and status 400, or 503 if the page is full. Web sockets get
        no answer, because the page does not use them.

        Args:
            scope: ASGI's description of the connection, with the path and the headers.
            receive: returns the parts of the request's body.
            send: sends the parts of the answer.
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
            # The rest of the request stays unread, so the connection cannot be used again.
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
            # Gradio itself reports errors in our event functions. This exception comes from a malformed request that no
            # check expects, or from a visitor who has left.
            print(f"error: {scope['method']} {scope['path'][:80]!r} failed: {type(error).__name__}", flush=True)
            if begun:
                await send({"type": "http.response.body", "body": b""})
            else:
                await refuse(400, REFUSED)

    async def _let_in(self, scope: Scope, receive: Receive, stack: ExitStack) -> Receive:
        """Checks a request, and returns the `receive` for Gradio. Raises Refused and Full.

        Args:
            stack: gets the contexts to close after the request was answered.
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
            self._sessions.of(event["session_hash"])  # Raises Full. Gradio has no such limit.
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
        """Whether the path is a file that the page shows. Names of the sessions' folders cannot be guessed."""
        try:
            file = Path(path).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            return False
        return file.is_file() and file.is_relative_to(self._sessions.folder) and file.parent != self._sessions.folder

    def _event(self, body: bytes) -> dict[str, Any]:
        """Builds a new event of the page from the body that was sent. Raises Refused."""
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
            # Only the number of the clicked item is used.
            "event_data": {"index": chosen if type(chosen) is int else None, "value": None},
        }

    def _files(self, value: object) -> object:
        """Builds Gradio's description of one upload or several. Raises Refused."""
        if isinstance(value, list):
            return [self._files(each) for each in value]
        if not isinstance(value, dict):
            raise Refused
        return {"path": str(self._sessions.uploaded(value.get("path"))), "meta": {"_type": "gradio.FileData"}}


def _value(value: object) -> object:
    """Returns a value that a field of the page can hold: text, number, bool or None. Raises Refused for others."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) < 2**64 and math.isfinite(value):
        return value
    if isinstance(value, str) and len(value) <= MAX_TEXT and not re.search("[\0\ud800-\udfff]", value):
        return value
    raise Refused


def _is_foreign(headers: Headers) -> bool:
    """Whether the request comes from a page of another site that is open in the visitor's browser."""
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
    """The size of the request's body, in bytes. Raises Refused if the headers do not say it. The server enforces it."""
    length = headers.get("content-length", "")
    if not re.fullmatch("[0-9]{1,15}", length) or "transfer-encoding" in headers:
        raise Refused
    return int(length)


def _only(scope: Scope, name: str) -> str:
    """The only value of this name in the query string. Empty if there is no value or more than one."""
    values = parse_qs(scope["query_string"].decode("latin-1")).get(name, [])
    return values[0] if len(values) == 1 else ""


async def _body(receive: Receive, max_bytes: int) -> bytes:
    """The whole body of a request. Raises Refused if it is larger than `max_bytes`."""
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
    """Returns a `receive` that gives a body that was read already, and after it the messages of `receive`."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
