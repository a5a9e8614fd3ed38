"""Captions by a model on an OpenAI-compatible server: vLLM, SGLang, Ollama, llama.cpp, or a hosted service."""

import base64
import io
import os
import re
import reprlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import urllib3
from PIL import Image as PillowImage

from xpsr_jax.caption.answers import caption_of, clean
from xpsr_jax.caption.captioning import Captioner, LoadedImage
from xpsr_jax.caption.http_client import HttpClient, RequestRefused, ServerTrouble
from xpsr_jax.caption.in_flight import Stop, in_flight
from xpsr_jax.caption.instructions import Instructions
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError, say

# HTTP statuses of a server that is starting.
_STARTING = (502, 503, 504)
# Seconds between two checks whether the server is up.
_POLL = 1.0
# HTTP statuses for a wrong URL, key or model.
_HOPELESS = (401, 403, 404, 405)
# If this many images fail in a row, the server must be down.
_FAILURES_IN_A_ROW = 20
# If this many images, from the first one on, are all refused for the same reason, the request must be wrong.
_FIRST_REFUSALS = 20
# Formats that are sent unchanged. Images in other formats, or that must be rotated, are sent as PNG.
_FORMATS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True)
class Server:
    """A server and how to send requests to it.

    Attributes:
      url: URL of the API, for example http://localhost:8000/v1.
      model: the model's name on the server.
      requests: the most requests at the same time.
      timeout: seconds until an answer must have arrived completely.
      retries: the most retries of a failed request. They wait 0, 1, 2, 4 ... 32 and then 60 seconds each, or as long as
        the server asks for (Retry-After, at most 60 seconds). Ten retries survive a server restart of four minutes.
      max_tokens: the most tokens of an answer.
      key: key of the API. "" for none.
    """

    url: str
    model: str
    requests: int = 64
    timeout: float = 120.0
    retries: int = 10
    max_tokens: int = 200
    key: str = ""

    @property
    def client(self) -> HttpClient:
        """A new client of this server."""
        return HttpClient(self.url, self.timeout, self.retries, connections=self.requests, key=self.key)


@dataclass(frozen=True)
class _Form:
    """The form of a request. Newer models refuse fields that all other models accept.

    Attributes:
      limit: the name of the field that limits the length of the answer.
      greedy: whether the request asks for temperature 0.
    """

    limit: str = "max_tokens"
    greedy: bool = True

    def newer(self, refusal: str) -> "_Form":
        """The form to try after a refusal that names a field. The same form if the refusal names no field of it."""
        limit = "max_completion_tokens" if re.search(r"\bmax_tokens\b", refusal) else self.limit
        return _Form(limit, self.greedy and "temperature" not in refusal)


def server_captioner(server: Server, instructions: Instructions) -> Captioner:
    """Returns a captioner that sends each image with each instruction, and asks for greedy answers.

    The captioner raises `Stop` if it is useless to continue: the server, key or model is wrong, the first 20 images
    were all refused for the same reason, or 20 images in a row got no answer.
    """
    ask = _asker(server)

    def caption(image: LoadedImage) -> Caption:
        url = data_url(image)
        return Caption(*(ask(url, text) if text else "" for text in (instructions.high, instructions.low)))

    def captions(images: Iterable[LoadedImage]) -> Iterator[tuple[LoadedImage, Caption | UserError]]:
        without_answer = 0
        refusals: set[str] | None = set()  # None: an image was not refused
        for number, (image, result) in enumerate(in_flight(caption, images, server.requests), 1):
            without_answer = without_answer + 1 if isinstance(result, ServerTrouble) else 0
            if without_answer == _FAILURES_IN_A_ROW:
                raise Stop(
                    f"{without_answer} images failed in a row; the last one: {result}. Resume with the same command"
                )
            if refusals is not None:
                refusals = refusals | {_kind(result)} if isinstance(result, RequestRefused) else None
            if refusals is not None and len(refusals) == 1 and number == _FIRST_REFUSALS:
                raise Stop(f"the first {number} images were all refused; {result}")
            yield image, result

    return captions


def wait_until_up(url: str, *, seconds: float, key: str = "") -> None:
    """Waits while the server does not answer, or answers that it is starting. A large model takes minutes to load.

    Returns when the server gives any other answer, or when the time is over. The next request then reports the error.
    """
    client, until, told = HttpClient(url, 10.0, 0, key=key), time.monotonic() + seconds, False
    trouble: int | Exception
    while True:
        try:
            trouble = client.once("GET", "/models").status
            if trouble not in _STARTING:
                return
        except ServerTrouble:
            return
        except (urllib3.exceptions.HTTPError, OSError) as error:
            trouble = error
        if time.monotonic() + _POLL > until:
            return
        if not told:
            say(f"{url} does not answer yet ({trouble}); waiting for {seconds:.0f} s at most", to_stderr=True)
            told = True
        time.sleep(_POLL)


def served_model(url: str, *, key: str = "", timeout: float = 30.0) -> str:
    """The name of the server's only model. Raises UserError if the server does not answer, or has several models."""
    answer = HttpClient(url, timeout, 2, key=key).json("GET", "/models")
    try:
        names = [clean(str(each["id"])) for each in answer["data"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{url}/models does not answer like an OpenAI-compatible server; check the URL") from error
    if len(names) != 1:
        raise UserError(f"{url} has {len(names)} models; name one with --model: {', '.join(names[:20])}")
    return names[0]


def data_url(image: LoadedImage) -> str:
    """The image as a data URL. It is never compressed again, because that would affect the low-level caption."""
    kind = next((kind for beginning, kind in _FORMATS.items() if image.data.startswith(beginning)), None)
    if kind is None or not image.as_stored:
        kind, buffer = "png", io.BytesIO()
        PillowImage.fromarray(image.pixels).save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
    else:
        data = image.data
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def api_key() -> str:
    """The API key in the environment variable that OpenAI's own client reads. "" if it is not set."""
    return os.environ.get("OPENAI_API_KEY", "")


def _asker(server: Server) -> Callable[[str, str], str]:
    """Returns a function of an image's data URL and an instruction. The threads of one captioner share it."""
    client = server.client
    accepted = _Form()

    def ask(url: str, instruction: str) -> str:
        nonlocal accepted
        form = accepted
        while True:
            try:
                answer = client.json("POST", "/chat/completions", _request(server, form, url, instruction))
                break
            except RequestRefused as refusal:
                if refusal.status in _HOPELESS:
                    raise Stop(str(refusal)) from refusal
                newer = form.newer(refusal.text) if refusal.status == 400 else form
                if newer == form:
                    raise
                form = newer
        if form != _Form():
            accepted = form  # only now: without an answer, the cause of the refusal may have been the image
        try:
            return caption_of(answer)
        except (LookupError, TypeError, AttributeError) as error:
            raise ServerTrouble(f"{server.url} answered without a text: {reprlib.repr(answer)}") from error

    return ask


def _request(server: Server, form: _Form, url: str, instruction: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": instruction}]
    request = {
        "model": server.model,
        "messages": [{"role": "user", "content": content}],
        form.limit: server.max_tokens,
    }
    return request | ({"temperature": 0} if form.greedy else {})


def _kind(refusal: RequestRefused) -> str:
    """The common part of similar refusals: words with digits (pixels, tokens, request ids) are replaced by #."""
    return f"{refusal.status} {re.sub(r'[^ ]*[0-9][^ ]*', '#', refusal.reason)}"
