"""Captions over HTTP from a real server that fails in every way that servers do."""

import base64
import http.server
import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image as PillowImage

from xpsr_jax.caption import server
from xpsr_jax.caption.__main__ import main
from xpsr_jax.caption.captioning import LoadedImage
from xpsr_jax.caption.in_flight import Stop
from xpsr_jax.caption.instructions import HIGH, PRESETS, instructions
from xpsr_jax.caption.server import Server, served_model, server_captioner, wait_until_up
from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.data.image_files import decode_image
from xpsr_jax.errors import UserError

ANSWER = {"choices": [{"message": {"role": "assistant", "content": " A cat.\nIt sits. "}}]}


class Handler(http.server.BaseHTTPRequestHandler):
    """Does what `server.faults` has next, then answers properly."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.server.starting:
            return self.server.starting.pop(0)(self)
        self.answer(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((time.monotonic(), self.path, dict(self.headers), body))
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
            fault = self.server.faults.pop(0) if self.server.faults else None
        time.sleep(self.server.delay)
        with self.server.lock:
            self.server.busy -= 1
        if fault is None:
            self.answer(200, self.server.answer)
        else:
            fault(self)

    def answer(self, status, content, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", headers.pop("length", str(len(data))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)


def status(number, **headers):
    return lambda handler: handler.answer(number, {"error": {"message": f"it is {number}"}}, **headers)


def hang(handler):
    handler.server.over.wait(10)
    handler.close_connection = True


def hang_up(handler):
    handler.close_connection = True


def truncated(handler):
    """The connection breaks within the answer."""
    data = json.dumps(ANSWER).encode()
    handler.answer(200, data[:20], length=str(len(data)))
    handler.close_connection = True


def truncated_json(handler):
    """As a proxy sends it that believes this to be all."""
    handler.answer(200, json.dumps(ANSWER).encode()[:20])


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(server, "BACKOFF", 0.01)
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    served.lock, served.asked, served.faults, served.models = threading.Lock(), [], [], ["llava"]
    served.starting = []
    served.over = threading.Event()
    served.busy = served.busiest = served.delay = 0
    served.answer = ANSWER
    served.url = f"http://127.0.0.1:{served.server_port}/v1"
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield served
    served.over.set()
    served.shutdown()
    served.server_close()


def image(seed=0, kind="PNG", orientation=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    buffer, exif = io.BytesIO(), PillowImage.Exif()
    if orientation:
        exif[0x0112] = orientation
    PillowImage.fromarray(pixels).save(buffer, kind, exif=exif)
    data = buffer.getvalue()
    return LoadedImage(f"{seed}.{kind.lower()}", data, decode_image(data, "it"), str(seed))


def caption(api, images, ask="high", **settings):
    settings = {"requests": 4, "timeout": 10, "retries": 3} | settings
    return list(server_captioner(Server(api.url, "llava", **settings), instructions("paper", ask))(images))


def test_what_is_asked(api):
    png = image()
    assert caption(api, [png], ask="both", key="secret") == [(png, Caption("A cat. It sits.", "A cat. It sits."))]
    for (_, path, headers, body), instruction in zip(api.asked, (HIGH, PRESETS["paper"].low), strict=True):
        assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("llava", 0, 200)
        [message] = body["messages"]
        picture, text = message["content"]
        assert message["role"] == "user" and text == {"type": "text", "text": instruction}
        assert picture["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(png.data).decode()


def test_images_arrive_as_they_are():
    def sent(image):
        kind, _, data = server.data_url(image).partition(";base64,")
        return kind, base64.b64decode(data)

    jpeg = image(kind="JPEG")
    assert sent(jpeg) == ("data:image/jpeg", jpeg.data)
    for other in (image(kind="TIFF"), image(kind="BMP"), image(kind="JPEG", orientation=6)):
        kind, data = sent(other)
        assert kind == "data:image/png"
        np.testing.assert_array_equal(decode_image(data, "sent"), other.pixels)
    assert image(kind="JPEG", orientation=6).pixels.shape == (8, 6, 3)


@pytest.mark.parametrize(
    "fault", [status(500), status(503), hang, hang_up, truncated, truncated_json], ids=lambda fault: fault.__name__
)
def test_faults_are_got_over(api, fault):
    api.faults = [fault, fault]
    [(_, result)] = caption(api, [image()], timeout=0.4 if fault is hang else 10)
    assert result == Caption("A cat. It sits.") and len(api.asked) == 3


def test_a_rate_limit_is_kept_to(api):
    api.faults = [status(429, Retry_After="1")]
    [(_, result)] = caption(api, [image()])
    assert result == Caption("A cat. It sits.")
    (first, *_), (second, *_) = api.asked
    assert second - first >= 1


def test_what_one_image_cannot_have(api):
    api.faults = [status(400)]
    [(_, refused)] = caption(api, [image()])
    assert str(refused) == f'{api.url}/chat/completions: status 400: {{"error": {{"message": "it is 400"}}}}'
    api.faults = [status(500)] * 4
    [(_, busy)] = caption(api, [image()])
    assert "status 500" in str(busy) and len(api.asked) == 5
    for answer, message in (
        ({"choices": [{"message": {"content": " \n"}}]}, "the model answered nothing"),
        ({"choices": []}, "answered without a text"),
        (["?"], "answered without a text"),
        ({"choices": [{"message": {"content": [{"text": "A cat."}]}}]}, "answered without a text"),
    ):
        api.answer = answer
        [(_, empty)] = caption(api, [image()])
        assert isinstance(empty, UserError) and message in str(empty)


def test_what_is_wrong_for_all_ends_the_work(api):
    api.faults = [status(401)]
    with pytest.raises(Stop, match="status 401"):
        caption(api, [image()])
    api.answer = {}
    with pytest.raises(Stop, match="20 images failed in a row"):
        caption(api, (image() for _ in range(100)))
    assert len(api.asked) < 40
    api.server_close()
    with pytest.raises(UserError, match="no answer"):
        served_model(api.url)


def test_a_server_that_is_starting_is_waited_for(api, monkeypatch, capsys):
    monkeypatch.setattr(server, "_POLL", 0.01)
    api.starting = [status(503)] * 2
    wait_until_up(api.url, seconds=10)
    assert api.starting == [] and "does not answer yet (503); waiting for 10 s at most" in capsys.readouterr().err
    assert served_model(api.url) == "llava"
    api.shutdown()
    api.server_close()
    begin = time.monotonic()
    wait_until_up(api.url, seconds=0.05)
    assert 0.03 < time.monotonic() - begin < 2
    assert "Connection refused" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--requests", "--limit", "--max-new-tokens"])
def test_numbers_that_make_no_sense(tmp_path, capsys, option):
    assert main(["server", str(tmp_path), "--output", str(tmp_path / "captions.jsonl"), option, "0"]) == 1
    assert capsys.readouterr().err == f"caption: {option} must be at least 1, not 0\n"


def test_many_in_flight(api):
    """One by one the server would take 4.8 s for 48 requests."""
    api.delay = 0.1
    begin = time.monotonic()
    results = caption(api, [image(i) for i in range(48)], requests=16)
    assert time.monotonic() - begin < 2.4  # measured 0.4
    assert len(results) == 48 and all(isinstance(result, Caption) for _, result in results)
    assert 8 <= api.busiest <= 16


def test_the_command(api, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(image(i).data)
    output = tmp_path / "captions.jsonl"
    command = ["server", str(tmp_path), "--output", str(output), "--url", api.url, "--requests", "1"]
    api.faults = [status(400)]
    assert main(command) == 1
    assert capsys.readouterr().out.startswith(f"{output}: 2 captioned, 1 failed")
    assert "status 400" in (tmp_path / "captions.failed.txt").read_text()
    assert main(command) == 0  # the failed one again, and only that one
    assert capsys.readouterr().out == f"{output}: 1 captioned, 2 known\n"
    assert len(api.asked) == 7 and not (tmp_path / "captions.failed.txt").exists()
    assert set(read_captions(output).values()) == {Caption("A cat. It sits.", "A cat. It sits.")}
    assert {json.loads(line)["source"] for line in output.read_text().splitlines()} == {"llava, paper instructions"}

    api.models = ["a", "b"]
    assert main(command) == 1
    assert capsys.readouterr().err == f"caption: {api.url} has 2 models; name one with --model: a, b\n"
