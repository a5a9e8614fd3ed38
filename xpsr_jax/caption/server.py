"""Captions by a model behind an OpenAI-compatible server: vLLM, SGLang, Ollama, llama.cpp, a hosted one."""

import base64
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import urllib3
from PIL import Image as PillowImage

from xpsr_jax.caption.captioning import Captioner, LoadedImage
from xpsr_jax.caption.in_flight import Stop, in_flight
from xpsr_jax.caption.instructions import Instructions, clean
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError

# It would tell of every retry.
logging.getLogger("urllib3").setLevel(logging.ERROR)

# Statuses of a server that is busy, starting or restarting.
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_STARTING = (502, 503, 504)
# Seconds between two looks at a server that is starting.
_POLL = 1.0
# Of a wrong address, key or model.
_HOPELESS = (401, 403, 404, 405)
# Seconds of the second wait; the first retry comes at once.
BACKOFF = 0.5
# The server must be down when so many images fail, one after the other.
_FAILURES_IN_A_ROW = 20
# Sent as they are. Others, and those that have to be turned, are sent as PNG.
_FORMATS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Server:
    """Where to ask, and how patiently.

    Attributes:
      url: of the API, such as http://localhost:8000/v1.
      model: its name there.
      requests: in flight at once.
      timeout: seconds to wait for an answer.
      retries: of a request that failed: at once, after 1, 2, 4 ... 32 and then every 60 seconds, or when the server
        asks for it (Retry-After). Ten of them outlast a restart of four minutes.
      max_tokens: of an answer.
      key: of the API; "" for none.
    """

    url: str
    model: str
    requests: int = 64
    timeout: float = 120.0
    retries: int = 10
    max_tokens: int = 200
    key: str = ""


class _Trouble(UserError):
    """The server failed, not the image."""


def server_captioner(server: Server, instructions: Instructions) -> Captioner:
    """Sends each image with each instruction; greedy answers."""
    ask = _asker(server)

    def caption(image: LoadedImage) -> Caption:
        url = data_url(image)
        return Caption(*(ask(url, text) if text else "" for text in (instructions.high, instructions.low)))

    def captions(images: Iterable[LoadedImage]) -> Iterator[tuple[LoadedImage, Caption | UserError]]:
        failures = 0
        for image, result in in_flight(caption, images, server.requests):
            failures = failures + 1 if isinstance(result, _Trouble) else 0
            if failures == _FAILURES_IN_A_ROW:
                raise Stop(f"{failures} images failed in a row; the last one: {result}. The same command goes on")
            yield image, result

    return captions


def wait_until_up(url: str, *, seconds: float, key: str = "") -> None:
    """Waits while nothing answers there, or only that it is starting; a large model takes minutes to load.

    Returns when the server answers, whatever it says, or the time is over: the next request then says what is wrong.
    """
    pool, until, told = _pool(Server(url, "", timeout=10.0, key=key)), time.monotonic() + seconds, False
    trouble: int | Exception
    while True:
        try:
            trouble = pool.request("GET", _address(url, "/models"), retries=False).status
            if trouble not in _STARTING:
                return
        except urllib3.exceptions.HTTPError as error:
            trouble = error
        if time.monotonic() + _POLL > until:
            return
        if not told:
            print(f"{url} does not answer yet ({trouble}); waiting for {seconds:.0f} s at most", file=sys.stderr)
            told = True
        time.sleep(_POLL)


def served_model(url: str, *, key: str = "", timeout: float = 30.0) -> str:
    """The model that the server has. Raises UserError if it cannot be asked, or has several."""
    server = Server(url, "", timeout=timeout, retries=2, key=key)
    answer = _request(_pool(server), server, "GET", "/models")
    try:
        names = [each["id"] for each in answer["data"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{url}/models does not answer as an OpenAI-compatible server does; is the address right?"
        ) from error
    if len(names) != 1:
        raise UserError(f"{url} has {len(names)} models; name one with --model: {', '.join(names[:20])}")
    return names[0]


def data_url(image: LoadedImage) -> str:
    """The image within the request, never compressed anew: that would be seen in the low-level caption."""
    kind = next((kind for beginning, kind in _FORMATS.items() if image.data.startswith(beginning)), None)
    if kind is not None:
        with PillowImage.open(io.BytesIO(image.data)) as picture:
            turned = picture.getexif().get(_ORIENTATION, 1) != 1
    if kind is None or turned:
        kind, buffer = "png", io.BytesIO()
        PillowImage.fromarray(image.pixels).save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
    else:
        data = image.data
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _asker(server: Server) -> Callable[[str, str], str]:
    pool = _pool(server)

    def ask(url: str, instruction: str) -> str:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": instruction}]
        body = {
            "model": server.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": server.max_tokens,
            "temperature": 0,
        }
        answer = _request(pool, server, "POST", "/chat/completions", body)
        try:
            text = answer["choices"][0]["message"]["content"]
            return clean(text or "")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Trouble(f"{server.url} answered without a text: {json.dumps(answer)[:200]}") from error

    return ask


def _pool(server: Server) -> urllib3.PoolManager:
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    timeout = urllib3.Timeout(connect=min(10.0, server.timeout), read=server.timeout)
    return urllib3.PoolManager(maxsize=server.requests, block=True, timeout=timeout, headers=headers)


def _request(pool: urllib3.PoolManager, server: Server, method: str, path: str, body: Any = None) -> Any:
    """The server's JSON answer, asked for again while it is busy, silent or sends what is no JSON."""
    address = _address(server.url, path)
    retries = urllib3.Retry(
        total=server.retries,
        status_forcelist=_RETRIED,
        allowed_methods=None,
        backoff_factor=BACKOFF,
        backoff_max=60,
        backoff_jitter=BACKOFF,
        raise_on_status=False,
    )
    try:
        while True:
            response = pool.request(method, address, json=body, retries=retries)
            if response.status != 200:
                break
            try:
                return response.json()
            except ValueError as error:
                assert response.retries is not None
                retries = response.retries.increment(method, address, error=error)
                retries.sleep()
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise _Trouble(f"{address}: no answer: {getattr(error, 'reason', None) or error}") from error
    message = f"{address}: status {response.status}: {_said(response)}"
    if response.status in _HOPELESS:
        raise Stop(message)
    raise _Trouble(message) if response.status in _RETRIED else UserError(message)


def _address(url: str, path: str) -> str:
    return url.rstrip("/") + path


def _said(response: urllib3.BaseHTTPResponse) -> str:
    return " ".join(response.data.decode(errors="replace").split())[:300] or str(response.reason)


def api_key() -> str:
    """Of the environment variable that OpenAI's own client reads."""
    return os.environ.get("OPENAI_API_KEY", "")
