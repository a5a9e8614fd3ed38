"""Captions by a model behind an OpenAI-compatible server: vLLM, SGLang, Ollama, llama.cpp, a hosted one."""

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

# Statuses of a server that is starting.
_STARTING = (502, 503, 504)
# Seconds between two looks at it.
_POLL = 1.0
# Of a wrong address, key or model.
_HOPELESS = (401, 403, 404, 405)
# The server must be down when as many images fail in a row.
_FAILURES_IN_A_ROW = 20
# What is asked must be wrong when as many images, the first ones, are all refused for one reason.
_FIRST_REFUSALS = 20
# Sent as they are. Others, and those that have to be turned, are sent as PNG.
_FORMATS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True)
class Server:
    """Where to ask, and how patiently.

    Attributes:
      url: of the API, such as http://localhost:8000/v1.
      model: its name there.
      requests: how many are in flight at once.
      timeout: seconds until an answer must be there in whole.
      retries: of a request that failed: at once, after 1, 2, 4 ... 32 and then every 60 seconds, or when the server
        asks for it (Retry-After, after 60 seconds at most). Ten of them outlast a restart of four minutes.
      max_tokens: the most tokens of an answer.
      key: of the API; "" for none.
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
        """A new client of it."""
        return HttpClient(self.url, self.timeout, self.retries, connections=self.requests, key=self.key)


@dataclass(frozen=True)
class _Form:
    """How a request is worded: newer models refuse what all others understand.

    Attributes:
      limit: the name of the field that limits the length of the answer.
      greedy: temperature 0 is asked for.
    """

    limit: str = "max_tokens"
    greedy: bool = True

    def newer(self, refusal: str) -> "_Form":
        """The form to try after a refusal that names a field; the same one if it names none that is sent."""
        limit = "max_completion_tokens" if re.search(r"\bmax_tokens\b", refusal) else self.limit
        return _Form(limit, self.greedy and "temperature" not in refusal)


def server_captioner(server: Server, instructions: Instructions) -> Captioner:
    """Sends each image with each instruction; greedy answers.

    The captioner raises `Stop` when it is no use to go on: the server, key or model is wrong, the first 20 images were
    refused for one reason, or 20 in a row got no answer.
    """
    ask = _asker(server)

    def caption(image: LoadedImage) -> Caption:
        url = data_url(image)
        return Caption(*(ask(url, text) if text else "" for text in (instructions.high, instructions.low)))

    def captions(images: Iterable[LoadedImage]) -> Iterator[tuple[LoadedImage, Caption | UserError]]:
        without_answer = 0
        refusals: set[str] | None = set()  # None: not all were refused
        for number, (image, result) in enumerate(in_flight(caption, images, server.requests), 1):
            without_answer = without_answer + 1 if isinstance(result, ServerTrouble) else 0
            if without_answer == _FAILURES_IN_A_ROW:
                raise Stop(f"{without_answer} images failed in a row; the last one: {result}. The same command goes on")
            if refusals is not None:
                refusals = refusals | {_kind(result)} if isinstance(result, RequestRefused) else None
            if refusals is not None and len(refusals) == 1 and number == _FIRST_REFUSALS:
                raise Stop(f"the first {number} images were all refused; {result}")
            yield image, result

    return captions


def wait_until_up(url: str, *, seconds: float, key: str = "") -> None:
    """Waits while nothing answers there, or only that it is starting; a large model takes minutes to load.

    Returns when the server answers, whatever it says, or the time is over: the next request then says what is wrong.
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
    """The model that the server has. Raises UserError if it cannot be asked, or has several."""
    answer = HttpClient(url, timeout, 2, key=key).json("GET", "/models")
    try:
        names = [clean(str(each["id"])) for each in answer["data"]]
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
    if kind is None or not image.as_stored:
        kind, buffer = "png", io.BytesIO()
        PillowImage.fromarray(image.pixels).save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
    else:
        data = image.data
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def api_key() -> str:
    """The key in the environment variable that OpenAI's own client reads; "" if there is none."""
    return os.environ.get("OPENAI_API_KEY", "")


def _asker(server: Server) -> Callable[[str, str], str]:
    """A function of an image's data URL and an instruction, which the threads of one captioner share."""
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
            accepted = form  # only what was answered is kept to: the image may have been at fault
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
    """What several refusals have in common: words with digits (pixels, tokens, a request's name) may differ."""
    return f"{refusal.status} {re.sub(r'[^ ]*[0-9][^ ]*', '#', refusal.reason)}"
