"""Visitors who send HTTP requests that the page would never send. In the end, the server's log has no traceback."""

import html
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import urllib3

from tests.app.conftest import DEMO, ROOT, running
from xpsr_jax.app.sessions import REFUSED

_NUMBERS = itertools.count()
_POOL = urllib3.PoolManager()
META = {"meta": {"_type": "gradio.FileData"}}


class Visitor:
    """One browser tab, as far as the server can tell."""

    def __init__(self, server, **headers: str) -> None:
        self.address = server.address.rstrip("/")
        self.headers = headers
        self.session = f"visitor{next(_NUMBERS)}"

    def ask(self, method: str, path: str, **options) -> urllib3.BaseHTTPResponse:
        headers = self.headers | options.pop("headers", {})
        if "json" in options:  # Unlike urllib3's own option, this can also send lone surrogates.
            options["body"] = json.dumps(options.pop("json"))
            headers = {"Content-Type": "application/json"} | headers
        return _POOL.request(method, self.address + path, headers=headers, retries=False, timeout=20, **options)

    def upload(self, *files: tuple[str, bytes]) -> list[str]:
        fields = [("files", file) for file in files]
        answer = self.ask("POST", "/gradio_api/upload", fields=fields)
        assert answer.status == 200, answer.data
        return answer.json()

    def event(self, index: int, *data: object, queue: bool = True, **more: object) -> urllib3.BaseHTTPResponse:
        path = "/gradio_api/queue/join" if queue else "/gradio_api/run/predict"
        return self.ask("POST", path, json={"fn_index": index, "data": data, "session_hash": self.session} | more)

    def result(self, index: int, *data: object, **more: object) -> dict:
        """The result of an event that waits in the queue."""
        answer = self.event(index, *data, **more)
        assert answer.status == 200, answer.data
        [done] = [message for message in self.messages() if message["msg"] == "process_completed"]
        return done["output"]

    def messages(self) -> list[dict]:
        """The queue's messages, until the visitor's events are done."""
        lines = self.ask("GET", f"/gradio_api/queue/data?session_hash={self.session}").data.decode().split("\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


class Page:
    """The facts about the page that any visitor can know.

    Attributes:
        events: all events.
        restore: the number of the event that restores one photograph.
    """

    def __init__(self, server) -> None:
        config = Visitor(server).ask("GET", "/config").json()
        self.events = config["dependencies"]
        self._fields = {each["id"]: each["props"] for each in config["components"]}
        self._restore = next(event for event in self.events if "What is in it" in self.labels(event))
        self.restore = self._restore["id"]

    def labels(self, event: dict) -> list[str]:
        return [self._fields[id].get("label") for id in event["inputs"]]

    def event(self, label: str, kind: str) -> int:
        """The number of the event that a field or a button starts."""
        for event in self.events:
            for id, begins in event["targets"]:
                if begins == kind and label in (self._fields[id].get("label"), self._fields[id].get("value")):
                    return event["id"]
        raise KeyError(label)

    def values(self, **given: object) -> list[object]:
        """The values that the page sends to restore a photograph, except those that are given by label."""
        given |= {name: given.get(name, "") for name in ("What is in it", "How it is degraded")}
        fields = [self._fields[id] for id in self._restore["inputs"]]
        return [given.get(field["label"], field.get("value")) for field in fields]


@pytest.fixture(scope="module")
def page(server) -> Page:
    return Page(server)


@pytest.fixture
def secret(tmp_path) -> Path:
    """A picture on the server that no visitor has uploaded."""
    path = tmp_path / "secret.png"
    path.write_bytes(DEMO.read_bytes())
    return path


def is_refused(answer: urllib3.BaseHTTPResponse) -> bool:
    return answer.status == 400 and answer.json() == {"detail": REFUSED}


def file(path: object, **more: object) -> dict:
    return {"path": path} | META | more


def test_no_visitor_can_read_other_files_of_the_server(server, page, secret):
    """The upload event accepts only uploads, no other event accepts a path, and all refusals are the same."""
    visitor = Visitor(server)
    one, many = page.event("Photograph", "upload"), page.event("Photographs, and optionally a captions.jsonl", "upload")
    [uploaded] = visitor.upload(("photo.png", DEMO.read_bytes()))
    preview = visitor.result(one, file(uploaded))["data"][0]
    assert Path(preview["path"]).name == "preview.webp"
    assert visitor.ask("GET", urlsplit(preview["url"]).path).status == 200

    folder = Path(uploaded).parents[1]
    # Visitors cannot use the files of a session: neither the preview nor the copy beside it.
    others = [preview["path"], str(Path(preview["path"]).parents[1] / "photo.png")]
    forged = [str(secret), f"{uploaded}/../../../{secret.name}", "/etc/passwd", "/dev/zero", str(folder), *others]
    forged += [
        f"file://{secret}",
        server.address,
        "http://169.254.169.254/",
        "nowhere.png",
        "",
        "\0",
        "\ud800",
        5,
        None,
    ]
    for path in forged:
        for entry in (file(path), {"path": path}, file(path, url=server.address), file(path, is_stream=True)):
            assert is_refused(visitor.event(one, entry)), path
            assert is_refused(visitor.event(many, [file(uploaded), entry])), path
            assert is_refused(visitor.event(one, entry, queue=False)), path
    for each in page.events:
        for position in range(len(each["inputs"])):
            data = [None] * len(each["inputs"])
            data[position] = file(str(secret))
            assert is_refused(visitor.event(each["id"], *data)), each
            assert is_refused(visitor.event(each["id"], *data, queue=False)), each
            data[position] = [file(str(secret))]
            assert is_refused(visitor.event(each["id"], *data)), each
    for path in (secret, "/etc/passwd", f"{folder}/../{secret.name}", f"{folder}//etc/passwd", folder, "~", ""):
        for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/"):
            answer = visitor.ask("GET", route + quote(str(path)))
            assert answer.status in (400, 403, 404) and b"PNG" not in answer.data and b"root" not in answer.data


def test_two_visitors_upload_the_same_photograph(server, page):
    visitors = [Visitor(server), Visitor(server)]
    paths = [visitor.upload(("same.png", DEMO.read_bytes()))[0] for visitor in visitors]
    assert paths[0] == paths[1]
    previews = [
        visitor.result(page.event("Photograph", "upload"), file(path))["data"][0]["path"]
        for visitor, path in zip(visitors, paths, strict=True)
    ]
    assert previews[0] != previews[1]


def test_a_photograph_is_restored_without_a_browser(server, page):
    """The events work if they are called like the page calls them."""
    visitor = Visitor(server)
    [path] = visitor.upload(("photo & more.png", DEMO.read_bytes()))
    visitor.result(page.event("Photograph", "upload"), file(path))
    assert "blur" in visitor.result(page.event("Measure how it is degraded", "click"))["data"][0]
    visitor.event(page.event("Restore", "click"), queue=False)
    values = page.values(**{"What is in it": "An orange.", "How it is degraded": None, "File format": "jpeg"})
    slider, download, _ = visitor.result(page.restore, *values)["data"]
    assert len(slider) == 2 and download["value"]["orig_name"] == "photo & more_restored.jpg"
    show = page.event("Restored so far", "select")
    assert visitor.event(show, queue=False, event_data={"index": 0}).json()["data"][0] == slider
    for index in (1, -1, 2**80, None, "0", {"index": 0}):
        answer = visitor.event(show, queue=False, event_data={"index": index})
        assert answer.status == 500 and answer.json()["error"] == REFUSED


def test_choosing_an_example_does_not_wait(server, page):
    """An example can be chosen while a photograph is restored and the queue is full."""
    busy = [Visitor(server) for _ in range(12)]
    choose = page.event("Or an example", "click")
    for visitor in busy:
        visitor.event(choose, 0, queue=False)
        visitor.event(page.event("Restore", "click"), queue=False)
    answers = [visitor.event(page.restore, *page.values(Steps=100)) for visitor in busy]
    assert [answer.status for answer in answers].count(503) >= 2
    begin = time.perf_counter()
    answer = Visitor(server).event(choose, 0, queue=False)
    seconds = time.perf_counter() - begin
    for visitor in busy:
        visitor.event(page.event("Cancel", "click"), queue=False)
    for visitor, accepted in zip(busy, answers, strict=True):
        assert accepted.status == 503 or visitor.messages()
    assert answer.status == 200 and answer.json()["data"][1].startswith("A honey bee") and seconds < 2  # measured: 0.05


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/proxy=https://a.hf.space/x"),
        ("GET", "/gradio_api/file=http://127.0.0.1:1/x.png"),
        ("GET", "/gradio_api/file=https://example.org/x.png"),
        ("GET", "/gradio_api/deep_link?session_hash=a"),
        ("GET", "/gradio_api/queue/status"),
        ("GET", "/gradio_api/queue/data?session_hash=never-seen"),
        ("GET", "/gradio_api/queue/data"),
        ("GET", "/gradio_api/heartbeat/a%20b"),
        ("GET", "/gradio_api/token"),
        ("GET", "/gradio_api/user"),
        ("GET", "/gradio_api/app_id"),
        ("GET", "/gradio_api/dev/reload"),
        ("GET", "/gradio_api/startup-events"),
        ("GET", "/gradio_api/custom_component/a/client/b/c"),
        ("GET", "/gradio_api/mcp/"),
        ("GET", "/monitoring"),
        ("GET", "/logout"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/pwa_icon"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/call/upload"),
        ("POST", "/gradio_api/call/v2/upload"),
        ("POST", "/gradio_api/api/predict"),
        ("POST", "/gradio_api/stream/a"),
        ("POST", "/gradio_api/cancel"),
        ("POST", "/gradio_api/reset"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/login"),
        ("PUT", "/"),
        ("POST", "/"),
        ("OPTIONS", "/gradio_api/upload"),
        ("TRACE", "/"),
    ],
)
def test_routes_that_the_page_does_not_need_are_closed(server, method, path):
    assert is_refused(Visitor(server).ask(method, path))


def test_events_of_the_wrong_shape_are_refused(server, page):
    visitor = Visitor(server)
    others = [None] * (len(page.values()) - 1)
    good = {"fn_index": 0, "data": [], "session_hash": visitor.session}
    for wrong in (
        {"fn_index": 10_000},
        {"fn_index": -1},
        {"fn_index": "0"},
        {"fn_index": True},
        {"fn_index": None},
        {"session_hash": None},
        {"session_hash": "../a"},
        {"session_hash": ["a"]},
        {"data": None},
        {"data": {"a": 1}},
        {"data": [1] * 50},
    ):
        assert is_refused(visitor.ask("POST", "/gradio_api/queue/join", json=good | wrong)), wrong
    for value in ({}, [], [1], {"path": "a"}, "\0", "\ud800", "a" * 10_001, 10**40):
        assert is_refused(visitor.event(page.restore, value, *others)), value
    deep = "[" * 100_000 + "]" * 100_000
    for body in ("", "null", "[]", "{", deep, '{"data":' + deep + "}", "NaN", '{"fn_index":' + "1" * 5000 + "}", "\0"):
        answer = visitor.ask("POST", "/gradio_api/queue/join", body=body, headers={"Content-Type": "application/json"})
        assert is_refused(answer), body[:20]
    for value in ("1e999", "-1e999", "NaN", "Infinity"):
        data = f"[{value}{',0' * len(others)}]"
        infinite = f'{{"fn_index":{page.restore},"session_hash":"a","data":{data}}}'
        assert is_refused(visitor.ask("POST", "/gradio_api/queue/join", body=infinite)), value
    assert is_refused(visitor.ask("POST", "/gradio_api/queue/join", body=b"{" + b" " * 1_000_001))


def test_invalid_values_of_fields_are_reported(server, page):
    """Values of the right type and of a wrong type: the error is one line, and the next visitor is served."""
    visitor = Visitor(server)
    visitor.event(page.event("Or an example", "click"), 0, queue=False)
    wrongs = {
        "Preset": ["unknown", 5],
        "Sampler": ["exact", 1.5],
        "Steps": [-1, 1e18, None, "x"],  # 0 is valid: the first stage's result
        "Strength": [0, -1, 5, "x"],
        "Upscale": [0, 0.5, 1e9],
        "Seed": [-1, "x", None],
        "File format": ["exe", None, "../x"],
    }
    for label, values in wrongs.items():
        for value in values:
            visitor.event(page.event("Restore", "click"), queue=False)
            output = visitor.result(page.restore, *page.values(**{label: value}))
            assert output.get("error") and "\n" not in output["error"], (label, value, output)
    for index in (1, -1, 1.5, "0", None, True):
        answer = visitor.event(page.event("Or an example", "click"), index, queue=False)
        assert answer.json().get("error"), index


def test_files_that_are_not_photographs(server, page):
    """The error for each is one line with its name, without the server's folders."""
    visitor = Visitor(server)
    contents = {
        "empty.png": b"",
        "cut.png": DEMO.read_bytes()[:500],
        "text.jpg": b"hello",
        "page.html": b"<script>alert(1)</script>",
        "<b>.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "vector.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    }
    for name, content in contents.items():
        [path] = visitor.upload((name, content))
        visitor.event(page.event("Photograph", "upload"), file(path))
        [said] = [message["log"] for message in visitor.messages() if message["msg"] == "log"]
        assert html.escape(Path(path).name) in said and "xpsr-page" not in said and "\n" not in said
    [path] = visitor.upload(("page.html", contents["page.html"]))
    answer = visitor.ask("GET", f"/gradio_api/file={quote(path)}")
    assert answer.headers["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost@evil", "", "[::1"]
)
def test_a_foreign_host_is_refused(server, host):
    for method, path in (("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/upload"), ("OPTIONS", "/")):
        answer = Visitor(server).ask(method, path, headers={"Host": host})
        assert answer.status == 400 and b"gradio" not in answer.data.lower()


def test_our_hosts_are_not_refused(server):
    port = urlsplit(server.address).port
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", "LOCALHOST", f"[::1]:{port}"):
        assert Visitor(server).ask("GET", "/", headers={"Host": host}).status == 200


def test_another_sites_page_cannot_ask(server, page):
    visitor = Visitor(server)
    own = server.address.rstrip("/")
    for origin, status in (
        ("https://evil.example", 400),
        ("null", 400),
        (f"{own}.evil", 400),
        ("http://[::1", 400),
        (own, 200),
    ):
        visitor.headers = {"Origin": origin}
        assert visitor.ask("POST", "/gradio_api/upload", fields={"files": ("a.png", b"a")}).status == status
        assert visitor.event(page.event("Or an example", "click"), 0, queue=False).status == status


def test_uploads_are_limited_and_broken_ones_do_no_harm(server):
    """The limits of the server fixture are 0.2 MB for a file and 1 GB for all."""
    visitor = Visitor(server)
    assert visitor.ask("POST", "/gradio_api/upload", fields={"files": ("a.png", bytes(200_001))}).status == 413
    assert is_refused(visitor.ask("POST", "/gradio_api/upload", body=iter([b"a"])))
    assert visitor.ask("POST", "/gradio_api/upload", body=b"a", headers={"Content-Type": "text/plain"}).status == 400
    parts = urlsplit(server.address)
    for length in ("2000000000", "-1", "1e3", "99999999999999999999"):
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
        connection.putrequest("POST", "/gradio_api/upload")
        connection.putheader("Content-Length", length)
        connection.putheader("Content-Type", "multipart/form-data; boundary=b")
        connection.endheaders()
        assert connection.getresponse().status in (400, 503), length
        connection.close()
    for text in (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; "
        b'name="files"; filename="a"\r\n\r\naaa',
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(text)
            time.sleep(0.05)
    assert Visitor(server).ask("GET", "/").status == 200


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server behind a proxy, with a password and room for two visitors."""
    folder = tmp_path_factory.mktemp("guarded")
    line = subprocess.run(
        [sys.executable, "-m", "xpsr_jax.app.passwords", "ann"],
        input="correct horse\n",
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout
    (folder / "users.txt").write_text(f"# who may open the page\n\n{line}")
    options = ["--auth", folder / "users.txt", "--root-path", "/xpsr", "--allowed-hosts", "*.example.org"]
    options += ["--max-sessions", 2, "--max-all-uploads-megabytes", 0.1]
    with running(folder, *options) as server:
        yield server


def signed_in(server, name: str = "ann", password: str = "correct horse") -> Visitor:
    visitor = Visitor(server)
    answer = visitor.ask("POST", "/login", fields={"username": name, "password": password}, encode_multipart=False)
    if answer.status == 200:
        visitor.headers["Cookie"] = answer.headers["set-cookie"].split(";")[0]
    return visitor


def test_without_a_password_there_is_only_the_form(guarded):
    stranger = Visitor(guarded)
    page = stranger.ask("GET", "/")
    assert page.status == 200 and b"auth_required" in page.data and b"Photograph" not in page.data
    assert stranger.ask("GET", "/config").status == 401
    asked = [
        "/gradio_api/heartbeat/a",
        "/gradio_api/queue/data?session_hash=a",
        "/gradio_api/upload_progress?upload_id=a",
    ]
    assert all(is_refused(stranger.ask("GET", path)) for path in asked)
    for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/run/predict"):
        assert is_refused(stranger.ask("POST", path, json={"fn_index": 0, "data": [], "session_hash": "a"}))
    for name, password in (
        ("ann", "wrong horse"),
        ("bob", "correct horse"),
        ("", ""),
        ("ann", "a" * 5000),
        ("ann", "\0"),
    ):
        assert not signed_in(guarded, name, password).headers
    large = stranger.ask("POST", "/login", fields={"username": "ann", "password": "a" * 10_001}, encode_multipart=False)
    assert is_refused(large)
    forged = Visitor(guarded, Cookie='access-token=1; access-token-unsecure="; a')
    assert is_refused(forged.ask("GET", "/gradio_api/heartbeat/a"))


def test_behind_a_proxy(guarded):
    visitor = signed_in(guarded)
    host = {"Host": "photos.example.org", "X-Forwarded-Proto": "https"}
    config = visitor.ask("GET", "/config", headers=host).json()
    assert config["root"] == "https://photos.example.org/xpsr"
    assert visitor.ask("GET", "/", headers={"Host": "example.com"}).status == 400


def test_all_visitors_together_have_limits(guarded):
    visitors = [signed_in(guarded) for _ in range(3)]
    size = len(DEMO.read_bytes())
    for _ in range(100_000 // size):
        visitors[0].upload((f"{next(_NUMBERS)}.png", DEMO.read_bytes() + bytes([next(_NUMBERS)])))
    answer = visitors[0].ask("POST", "/gradio_api/upload", fields={"files": ("more.png", DEMO.read_bytes())})
    assert answer.status == 503 and "all uploads together are too large" in answer.json()["detail"]
    # A heartbeat is an open page.
    pages = [
        visitor.ask("GET", f"/gradio_api/heartbeat/{visitor.session}", preload_content=False) for visitor in visitors
    ]
    assert [page.status for page in pages] == [200, 200, 503]
    assert visitors[2].event(0, 0, queue=False).status in (400, 503)
    for page in pages:
        page.close()
