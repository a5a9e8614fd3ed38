"""JSON over HTTP from a server that is not trusted: answers have a limit of bytes and of time, and come from it alone.

urllib3 has the connections. What is here bounds what it leaves open: the size of an answer before and after it is
unpacked, the time of a whole answer (urllib3's time-outs are for silence: a server that sends a byte a second never
ends), how long a server may ask to wait, and where a redirect may lead.
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

# urllib3 would log every retry.
logging.getLogger("urllib3").setLevel(logging.ERROR)

# Bytes of an answer, as received and as unpacked. Two captions have a thousand.
MOST_ANSWER_BYTES = 2**20
# Seconds of the second wait; the first retry comes at once. Each further wait is twice as long, up to LONGEST_WAIT,
# which is also the longest wait that a server can ask for (Retry-After).
BACKOFF = 1.0
LONGEST_WAIT = 60.0
# Statuses of a server that is busy, starting or restarting.
BUSY = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 307, 308)
_MOST_REDIRECTS = 5
_DEFAULT_PORTS = {"http": 80, "https": 443}


class ServerTrouble(UserError):
    """There is no answer, or not one that can be used: the server's fault rather than the image's."""


class RequestRefused(UserError):
    """The server understood, and refused.

    Attributes:
      status: of HTTP.
      reason: why, in a line: the server's message where OpenAI's is, else what there is of the answer.
      text: the answer, as far as it is looked at.
    """

    def __init__(self, address: str, answer: "Answer"):
        self.status, self.reason = answer.status, _reason(answer)
        self.text = answer.data[:4000].decode(errors="replace")
        super().__init__(f"{address}: status {self.status}: {self.reason}")


@dataclass(frozen=True)
class Answer:
    """What came back, read to its end and unpacked."""

    status: int
    reason: str
    headers: Mapping[str, str]
    data: bytes


@dataclass(frozen=True)
class HttpClient:
    """Asks one server.

    Attributes:
      url: address of the API; the paths of requests are appended to it.
      timeout: seconds until the whole answer must be there.
      retries: of a request while the server is busy, silent or broken.
      connections: how many there may be at once.
      key: sent as a bearer token; "" for none.
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
        """The JSON that the server answers with, asked for again while it is busy, silent or breaks off.

        Raises:
          RequestRefused: a status that is neither success nor of a busy server.
          ServerTrouble: no answer after all retries, or one that no retry would better: too large, redirected to
            another host, packed in a way that was not offered, nested too deeply.
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
        """One try, whatever the status; redirects are followed within the same host.

        Raises:
          ServerTrouble: the answer is too large, or comes from elsewhere.
          urllib3.exceptions.HTTPError, OSError: there is none in time.
        """
        address = self.url.rstrip("/") + path
        for _ in range(_MOST_REDIRECTS):
            answer = self._read(method, address, body)
            if answer.status not in _REDIRECTS or "Location" not in answer.headers:
                return answer
            there = _joined(address, answer.headers["Location"])
            if not _same_server(address, there):
                raise ServerTrouble(f"{address} redirects to another host, which is refused: {there[:200]}")
            address = there
        raise ServerTrouble(f"{address} redirects again and again")

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
    """Seconds to wait before the retry of this number: as the server asks for, within reason, or longer and longer."""
    asked = answer.headers.get("Retry-After") if answer else None
    if asked is not None:
        try:
            return min(urllib3.Retry().parse_retry_after(asked), LONGEST_WAIT)
        except (ValueError, OverflowError, urllib3.exceptions.InvalidHeader):
            pass  # as if it had not asked
    if attempt == 1:
        return 0.0
    return min(BACKOFF * 2.0 ** min(attempt - 2, 60), LONGEST_WAIT) + random.uniform(0, BACKOFF / 2)


def _unpacked(data: bytes, encodings: str, address: str) -> bytes:
    """The content of an answer that may be packed, never more than MOST_ANSWER_BYTES of it."""
    for encoding in reversed([each.strip().lower() for each in encodings.split(",") if each.strip()]):
        if encoding == "identity":
            continue
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise ServerTrouble(f"{address}: the answer is packed as {encoding[:40]!r}, which was not asked for")
        try:
            unpacking = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # gzip or zlib, by its header
            data = unpacking.decompress(data, MOST_ANSWER_BYTES + 1)
        except zlib.error as error:
            raise urllib3.exceptions.DecodeError(f"the answer cannot be unpacked: {error}") from error
        if len(data) > MOST_ANSWER_BYTES:
            raise ServerTrouble(f"{address}: the answer is longer than {MOST_ANSWER_BYTES:,} bytes when unpacked")
        if not unpacking.eof:
            raise urllib3.exceptions.DecodeError("the answer breaks off")
    return data


def _reason(answer: Answer) -> str:
    """What the server says of its refusal, in a line."""
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
        raise ServerTrouble(f"{address} redirects to what is no address: {location[:200]}") from error


def _same_server(address: str, other: str) -> bool:
    """Whether both are one host and port; from HTTP to HTTPS, but not back, the default port may change with it."""
    try:
        one, two = urllib.parse.urlsplit(address), urllib.parse.urlsplit(other)
        ports = [each.port or _DEFAULT_PORTS.get(each.scheme) for each in (one, two)]
    except ValueError:  # a port that is none
        return False
    if one.hostname != two.hostname:
        return False
    if one.scheme == two.scheme:
        return ports[0] == ports[1]
    return (one.scheme, two.scheme) == ("http", "https") and (ports[0] == ports[1] or ports == [80, 443])


class _Watch:
    """Shuts a socket down when the time is over, which ends any reading or writing of it in another thread."""

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
    """Raises TimeoutError if what this thread does with `_HttpPool` or `_HttpsPool` within takes longer."""
    watch = _OF_THREAD.watch = _Watch()
    timer = threading.Timer(seconds, watch.end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (urllib3.exceptions.HTTPError, OSError) as error:
        if not watch.over:
            raise
        raise TimeoutError(f"it is not there in whole after {seconds:g} s") from error
    finally:
        timer.cancel()
        _OF_THREAD.watch = None
    if watch.over:  # to the reader this may have looked like the end of the answer
        raise TimeoutError(f"it is not there in whole after {seconds:g} s")


class _Watched:
    """A connection that `_deadline` can end."""

    sock: socket.socket | None

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._be_watched()

    def request(self, *args: Any, **options: Any) -> None:
        self._be_watched()  # a connection that was kept
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
