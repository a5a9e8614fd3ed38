"""JSON over HTTP from a server that is not trusted. Size, time and origin of its answers are limited.

urllib3 makes the connections. This module adds the limits that urllib3 does not have:

- the size of an answer, compressed and decompressed;
- the time for a whole answer. urllib3's timeouts limit only silence, so a server that sends a byte per second could
  continue for ever;
- the wait that a server may ask for;
- the host to which a redirect may lead.
"""

import contextlib
import json
import logging
import random
import socket
import threading
import time
import urllib.parse
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import urllib3
import urllib3.connection

from xpsr_jax.errors import UserError

# Otherwise urllib3 would log every retry.
logging.getLogger("urllib3").setLevel(logging.ERROR)

# The most bytes of an answer, compressed and decompressed. Two captions have about a thousand bytes.
MOST_ANSWER_BYTES = 2**20
# The first retry has no wait. The second waits this many seconds, and each further wait is twice as long, up to
# LONGEST_WAIT. That is also the longest wait that a server can ask for (Retry-After).
BACKOFF = 1.0
LONGEST_WAIT = 60.0
# HTTP statuses of a server that is busy, starting or restarting.
BUSY = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 307, 308)
_MOST_REDIRECTS = 5
_DEFAULT_PORTS = {"http": 80, "https": 443}


class ServerTrouble(UserError):
    """The server gave no usable answer. The cause is probably the server, not the image."""


class RequestRefused(UserError):
    """The server refused the request.

    Attributes:
      status: the HTTP status.
      reason: the reason in one line: the message in the form of OpenAI's API, or else the start of the answer.
      text: the first 4000 bytes of the answer.
    """

    def __init__(self, address: str, answer: "Answer"):
        self.status, self.reason = answer.status, _reason(answer)
        self.text = answer.data[:4000].decode(errors="replace")
        super().__init__(f"{address}: status {self.status}: {self.reason}")


@dataclass(frozen=True)
class Answer:
    """A complete answer, decompressed."""

    status: int
    reason: str
    headers: Mapping[str, str]
    data: bytes


@dataclass(frozen=True)
class HttpClient:
    """Sends requests to one server.

    Attributes:
      url: URL of the API. The paths of requests are appended to it.
      timeout: seconds until the whole answer must have arrived.
      retries: the most retries of a request while the server is busy, silent or broken.
      connections: the most connections at the same time.
      key: sent as a bearer token. "" for none.
    """

    url: str
    timeout: float
    retries: int
    connections: int = 1
    key: str = ""
    _pool: urllib3.PoolManager = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        headers = {"Accept-Encoding": "gzip"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        timeout = urllib3.Timeout(connect=min(10.0, self.timeout), read=self.timeout)
        pool = urllib3.PoolManager(maxsize=self.connections, block=True, timeout=timeout, headers=headers)
        pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        object.__setattr__(self, "_pool", pool)

    def json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Returns the server's JSON answer. Retries while the server is busy, silent or breaks the connection.

        Raises:
          RequestRefused: the status means neither success nor a busy server.
          ServerTrouble: no answer after all retries, or an answer for which a retry is useless: too large, redirected
            to another host, compressed in a way that was not offered, nested too deeply.
        """
        address = self.url.rstrip("/") + path
        trouble = "no answer"
        answer = None
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(_pause(attempt, answer))
            try:
                answer = None
                answer = self.once(method, path, body)
                if answer.status == 200:
                    return json.loads(answer.data)
            except RecursionError as error:
                raise ServerTrouble(f"{address}: the answer is nested too deeply") from error
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                trouble = f"no answer: {getattr(error, 'reason', None) or error}"
                continue
            refusal = RequestRefused(address, answer)
            if answer.status not in BUSY:
                raise refusal
            trouble = f"status {answer.status}: {refusal.reason}"
        raise ServerTrouble(f"{address}: {trouble}")

    def once(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """Sends a request once and returns the answer with any status. Follows redirects within the same host.

        Raises:
          ServerTrouble: the answer is too large, or is redirected to another host.
          urllib3.exceptions.HTTPError, OSError: there was no answer in time.
        """
        address = self.url.rstrip("/") + path
        for _ in range(_MOST_REDIRECTS):
            answer = self._read(method, address, body)
            if answer.status not in _REDIRECTS or "Location" not in answer.headers:
                return answer
            there = _joined(address, answer.headers["Location"])
            if not _same_server(address, there):
                raise ServerTrouble(f"{address} redirects to another host, which is not allowed: {there[:200]}")
            address = there
        raise ServerTrouble(f"{address} redirects too many times")

    def _read(self, method: str, address: str, body: Mapping[str, Any] | None) -> Answer:
        with _deadline(self.timeout):
            response = self._pool.request(
                method, address, json=body, retries=False, redirect=False, preload_content=False
            )
            try:
                data = b""
                while len(data) <= MOST_ANSWER_BYTES and (piece := response.read(2**16, decode_content=False)):
                    data += piece
                if len(data) > MOST_ANSWER_BYTES:
                    raise ServerTrouble(f"{address}: the answer is longer than {MOST_ANSWER_BYTES:,} bytes")
            except BaseException:
                response.close()
                raise
            response.release_conn()
        data = _unpacked(data, response.headers.get("Content-Encoding", ""), address)
        return Answer(response.status, str(response.reason or ""), response.headers, data)


def _pause(attempt: int, answer: Answer | None) -> float:
    """Seconds to wait before a retry: what the server asks for, up to LONGEST_WAIT, or else exponential backoff."""
    asked = answer.headers.get("Retry-After") if answer else None
    if asked is not None:
        try:
            return min(urllib3.Retry().parse_retry_after(asked), LONGEST_WAIT)
        except (ValueError, OverflowError, urllib3.exceptions.InvalidHeader):
            pass  # an invalid header is ignored
    if attempt == 1:
        return 0.0
    return min(BACKOFF * 2.0 ** min(attempt - 2, 60), LONGEST_WAIT) + random.uniform(0, BACKOFF / 2)


def _unpacked(data: bytes, encodings: str, address: str) -> bytes:
    """Decompresses an answer, to at most MOST_ANSWER_BYTES."""
    for encoding in reversed([each.strip().lower() for each in encodings.split(",") if each.strip()]):
        if encoding == "identity":
            continue
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise ServerTrouble(f"{address}: the answer is compressed as {encoding[:40]!r}, which was not requested")
        try:
            unpacking = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # gzip or zlib, by its header
            data = unpacking.decompress(data, MOST_ANSWER_BYTES + 1)
        except zlib.error as error:
            raise urllib3.exceptions.DecodeError(f"the answer cannot be decompressed: {error}") from error
        if len(data) > MOST_ANSWER_BYTES:
            raise ServerTrouble(f"{address}: the answer is longer than {MOST_ANSWER_BYTES:,} bytes when decompressed")
        if not unpacking.eof:
            raise urllib3.exceptions.DecodeError("the answer is incomplete")
    return data


def _reason(answer: Answer) -> str:
    """The server's reason for a refusal, in one line."""
    try:
        said = json.loads(answer.data)["error"]
        said = said["message"] if isinstance(said, dict) else said
    except (ValueError, KeyError, TypeError, RecursionError):
        said = None
    text = said if isinstance(said, str) else answer.data[:4000].decode(errors="replace")
    return " ".join(text.split())[:300] or answer.reason


def _joined(address: str, location: str) -> str:
    try:
        return urllib.parse.urljoin(address, location)
    except ValueError as error:
        raise ServerTrouble(f"{address} redirects to an invalid URL: {location[:200]}") from error


def _same_server(address: str, other: str) -> bool:
    """Whether both URLs have the same host and port. From HTTP to HTTPS, the default port may change; not back."""
    try:
        one, two = urllib.parse.urlsplit(address), urllib.parse.urlsplit(other)
        ports = [each.port or _DEFAULT_PORTS.get(each.scheme) for each in (one, two)]
    except ValueError:  # an invalid port
        return False
    if one.hostname != two.hostname:
        return False
    if one.scheme == two.scheme:
        return ports[0] == ports[1]
    return (one.scheme, two.scheme) == ("http", "https") and (ports[0] == ports[1] or ports == [80, 443])


class _Watch:
    """Shuts a socket down when the time is over. That ends reads and writes of it in other threads."""

    def __init__(self) -> None:
        self.over = False
        self._socket: socket.socket | None = None

    def look_at(self, connection: socket.socket) -> None:
        self._socket = connection
        if self.over:
            self.end()

    def end(self) -> None:
        self.over = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _OfThread(threading.local):
    watch: _Watch | None = None


_OF_THREAD = _OfThread()


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raises TimeoutError if this thread uses `_HttpPool` or `_HttpsPool` in this context for longer than `seconds`."""
    watch = _OF_THREAD.watch = _Watch()
    timer = threading.Timer(seconds, watch.end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (urllib3.exceptions.HTTPError, OSError) as error:
        if not watch.over:
            raise
        raise TimeoutError(f"it is not complete after {seconds:g} s") from error
    finally:
        timer.cancel()
        _OF_THREAD.watch = None
    if watch.over:  # a closed socket may have looked like the end of the answer
        raise TimeoutError(f"it is not complete after {seconds:g} s")


class _Watched:
    """A connection that `_deadline` can end."""

    sock: socket.socket | None

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._be_watched()

    def request(self, *args: Any, **options: Any) -> None:
        self._be_watched()  # the connection may be an older one that is reused
        super().request(*args, **options)  # type: ignore[misc]

    def _be_watched(self) -> None:
        if self.sock is not None and _OF_THREAD.watch is not None:
            _OF_THREAD.watch.look_at(self.sock)


class _HttpConnection(_Watched, urllib3.connection.HTTPConnection):
    pass


class _HttpsConnection(_Watched, urllib3.connection.HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection
