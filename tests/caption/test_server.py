"""Captions over HTTP from a real server with all kinds of faults."""

import base64
import gzip
import http.server
import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image as PillowImage

from xpsr_jax.caption import http_client, server
from xpsr_jax.caption.captioning import LoadedImage
from xpsr_jax.caption.in_flight import Stop
from xpsr_jax.caption.instructions import HIGH, PRESETS, instructions
from xpsr_jax.caption.server import Server, served_model, server_captioner, wait_until_up
from xpsr_jax.cli.caption import main
from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.errors import UserError
from xpsr_jax.images.reading import decode_image, decode_picture

ANSWER = {"choices": [{"message": {"role": "assistant", "content": " A cat.\nIt sits. "}}]}


class Handler(http.server.BaseHTTPRequestHandler):
    """Executes the next entry of `server.faults`. If there is none, answers properly."""

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


def status(number, text=None, **headers):
    return lambda handler: handler.answer(number, {"error": {"message": text or f"it is {number}"}}, **headers)


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
    """A proxy sends a part of the answer as if it were complete."""
    handler.answer(200, json.dumps(ANSWER).encode()[:20])


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(http_client, "BACKOFF", 0.01)
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
    picture = decode_picture(data, "it")
    return LoadedImage(f"{seed}.{kind.lower()}", data, picture.rgb, str(seed), picture.as_stored)


def caption(api, images, ask="high", **settings):
    settings = {"requests": 4, "timeout": 10, "retries": 3} | settings
    return list(server_captioner(Server(api.url, "llava", **settings), instructions("paper", ask))(images))


def test_the_request(api):
    png = image()
    assert caption(api, [png], ask="both", key="secret") == [(png, Caption("A cat. It sits.", "A cat. It sits."))]
    for (_, path, headers, body), instruction in zip(api.asked, (HIGH, PRESETS["paper"].low), strict=True):
        assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("llava", 0, 200)
        [message] = body["messages"]
        picture, text = message["content"]
        assert message["role"] == "user" and text == {"type": "text", "text": instruction}
        assert picture["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(png.data).decode()


def test_images_are_sent_unchanged():
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
def test_requests_are_retried_after_faults(api, fault):
    api.faults = [fault, fault]
    [(_, result)] = caption(api, [image()], timeout=0.4 if fault is hang else 10)
    assert result == Caption("A cat. It sits.") and len(api.asked) == 3


def test_a_rate_limit_is_respected(api):
    api.faults = [status(429, Retry_After="1")]
    [(_, result)] = caption(api, [image()])
    assert result == Caption("A cat. It sits.")
    (first, *_), (second, *_) = api.asked
    assert second - first >= 1


def test_failures_of_one_image(api):
    api.faults = [status(400)]
    [(_, refused)] = caption(api, [image()])
    assert str(refused) == f"{api.url}/chat/completions: status 400: it is 400"
    api.faults = [status(500)] * 4
    [(_, busy)] = caption(api, [image()])
    assert "status 500" in str(busy) and len(api.asked) == 5
    for answer, message in (
        ({"choices": [{"message": {"content": " \n"}}]}, "the model's answer is empty"),
        ({"choices": []}, "answered without a text"),
        (["?"], "answered without a text"),
        ({"choices": [{"message": {"content": [{"type": "image", "text": "A cat."}]}}]}, "answered without a text"),
        ({"choices": [{"message": {"content": 7}}]}, "answered without a text"),
    ):
        api.answer = answer
        [(_, empty)] = caption(api, [image()])
        assert isinstance(empty, UserError) and message in str(empty)


@pytest.mark.parametrize(
    ("content", "finish", "expected"),
    [
        ("<think>It has\n\nears.</think>A cat.", "stop", "A cat."),
        ("A <think>\n</think>cat.<think>Yes</think>", "stop", "A cat."),
        ("It has ears.</think>\n\nA cat.", "stop", "A cat."),  # the opening tag was in the prompt
        ("<think>It has ears. It", "length", "had not finished its reasoning"),
        ("<think>" * 100_000, "stop", "had not finished its reasoning"),
        ("A cat that", "length", "cut off within its first sentence"),
        ("A cat of 3.5 kg that", "length", "cut off within its first sentence"),
        ("A cat that", "stop", "A cat that"),
        ("A cat. It si", "length", "A cat. It si"),
        ([{"type": "text", "text": "A cat."}, {"type": "reasoning", "x": 1}, "It sits."], "stop", "A cat. It sits."),
        ([], "stop", "the model's answer is empty"),
        (None, "stop", "the model's answer is empty"),
        ("\x1b[31mA\0 cat\ud83d.\u2028It\x07 sits.", "stop", "[31mA cat\ufffd. It sits."),
    ],
)
def test_answers_are_cleaned(api, content, finish, expected):
    api.answer = {"choices": [{"message": {"content": content}, "finish_reason": finish}]}
    [(_, result)] = caption(api, [image()])
    assert result == Caption(expected) or (isinstance(result, UserError) and expected in str(result))


def test_an_odd_answer_fails_only_its_image(api):
    odd = (
        (b"{}" + b" " * 2**20, {}, "longer than 1,048,576 bytes"),
        (gzip.compress(b"[" + b" " * 2**24 + b"]"), {"Content_Encoding": "gzip"}, "1,048,576 bytes when decompressed"),
        (gzip.compress(gzip.compress(b" " * 2**24)), {"Content_Encoding": "gzip, gzip"}, "bytes when decompressed"),
        (b"\x1b", {"Content_Encoding": "br"}, "compressed as 'br', which was not requested"),
        (b"[" * 500_000, {}, "nested too deeply"),
        (b"{}", {}, "answered without a text: {}"),
    )
    for data, headers, message in odd:
        api.faults = [lambda handler, d=data, h=headers: handler.answer(200, d, **h)]
        (_, failed), (_, whole) = caption(api, [image(), image(1)], requests=1)
        assert isinstance(failed, UserError) and message in str(failed)
        assert whole == Caption("A cat. It sits.")
    packed = gzip.compress(json.dumps(ANSWER).encode())
    api.faults = [lambda handler: handler.answer(200, packed, Content_Encoding="gzip")]
    [(_, result)] = caption(api, [image()])
    assert result == Caption("A cat. It sits.") and api.faults == []


def test_a_number_with_too_many_digits_is_not_an_answer(api):
    api.faults = [lambda handler: handler.answer(200, b'{"choices": ' + b"9" * 5000 + b"}")] * 2
    (_, failed), (_, whole) = caption(api, [image(), image(1)], requests=1, retries=1)
    assert "no answer" in str(failed) and whole == Caption("A cat. It sits.")


def drip_body(handler):
    data = json.dumps(ANSWER).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    for byte in data:
        handler.wfile.write(bytes([byte]))
        if handler.server.over.wait(0.05):
            break
    handler.close_connection = True


def drip_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b"x")
    handler.close_connection = True


def endless(handler):
    """The answer has no length, so a broken connection looks like its end."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(ANSWER).encode())
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b" ")
    handler.close_connection = True


@pytest.mark.parametrize("fault", [drip_body, drip_headers, endless])
def test_a_server_that_sends_very_slowly_times_out(api, fault, monkeypatch):
    # The client closes the connection, which is an error for the server.
    monkeypatch.setattr(http.server.ThreadingHTTPServer, "handle_error", lambda *_: None)
    api.faults = [fault] * 2
    begin = time.monotonic()
    (_, late), (_, whole) = caption(api, [image(), image(1)], requests=1, timeout=0.3, retries=1)
    assert time.monotonic() - begin < 3  # measured 0.7
    assert "not complete after 0.3 s" in str(late) and whole == Caption("A cat. It sits.")


@pytest.mark.parametrize("asked", ["86400", "Fri, 31 Dec 9999 23:59:59 GMT", "9" * 5000, "soon", "-3"])
def test_the_wait_that_a_server_asks_for_is_limited(api, monkeypatch, asked):
    monkeypatch.setattr(http_client, "LONGEST_WAIT", 0.05)
    api.faults = [status(429, Retry_After=asked)] * 2
    begin = time.monotonic()
    [(_, result)] = caption(api, [image()])
    assert result == Caption("A cat. It sits.") and time.monotonic() - begin < 2


def test_pictures_are_not_sent_to_another_host(api):
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)  # it never answers, and must not be asked
    for place in (f"http://127.0.0.1:{other.server_port}/v1/chat/completions", "//example.org/", "http://[", "ftp:x"):
        api.faults = [status(307, Location=place)]
        (_, failed), (_, whole) = caption(api, [image(), image(1)], requests=1)
        assert "redirects to" in str(failed) and whole == Caption("A cat. It sits.")
    other.server_close()
    api.asked.clear()
    api.faults = [status(308, Location="/v2/elsewhere"), status(302, Location="again")]
    [(_, result)] = caption(api, [image()])
    assert result == Caption("A cat. It sits.")
    assert [path for _, path, *_ in api.asked] == ["/v1/chat/completions", "/v2/elsewhere", "/v2/again"]
    assert all(body["messages"] for *_, body in api.asked)
    api.faults = [status(302, Location="/round")] * 9
    [(_, result)] = caption(api, [image()])
    assert "redirects too many times" in str(result)


def test_newer_models_get_requests_in_their_form(api):
    def picky(handler):
        *_, body = api.asked[-1]
        for field in ("max_tokens", "temperature"):
            if field in body:
                return handler.answer(400, {"error": {"message": "not supported", "param": field}})
        handler.answer(200, ANSWER)

    api.faults = [picky] * 5
    results = caption(api, [image(i) for i in range(3)], requests=1, max_tokens=50)
    assert [result for _, result in results] == [Caption("A cat. It sits.")] * 3
    sent = [
        {field: value for field, value in body.items() if field not in ("model", "messages")} for *_, body in api.asked
    ]
    newer = {"max_completion_tokens": 50}
    assert sent == [{"max_tokens": 50, "temperature": 0}, newer | {"temperature": 0}, *[newer] * 3]  # remembered
    # If the refusal is repeated, its cause is the image, and the form of requests does not change.
    api.asked.clear()
    api.faults = [status(400, text="max_tokens is too large for this image")] * 2
    (_, failed), (_, whole) = caption(api, [image(), image(1)], requests=1)
    assert "is too large" in str(failed) and whole == Caption("A cat. It sits.")
    assert [("max_tokens" in body) for *_, body in api.asked] == [True, False, True]


def test_errors_that_affect_all_images_end_the_work(api):
    api.faults = [status(401)]
    with pytest.raises(Stop, match="status 401"):
        caption(api, [image()])
    api.answer = {}
    with pytest.raises(Stop, match="20 images failed in a row"):
        caption(api, (image() for _ in range(100)))
    assert len(api.asked) < 40
    api.asked.clear()
    api.faults = [lambda h, i=i: h.answer(400, {"error": {"message": f"picture {i} is too large"}}) for i in range(99)]
    with pytest.raises(Stop, match=r"the first 20 images were all refused; .* status 400: picture \d+ is too large"):
        caption(api, (image() for _ in range(100)))
    assert len(api.asked) < 40
    api.server_close()
    with pytest.raises(UserError, match="no answer"):
        served_model(api.url)


def test_the_captioner_waits_for_a_starting_server(api, monkeypatch, capsys):
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
def test_invalid_numbers_are_refused(tmp_path, capsys, option):
    assert main(["server", str(tmp_path), "--output", str(tmp_path / "captions.jsonl"), option, "0"]) == 1
    assert capsys.readouterr().err == f"error: {option} must be at least 1, not 0\n"


def test_many_in_flight(api):
    """One after the other, 48 requests would take 4.8 s."""
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
    assert main(command) == 0  # only the failed image is tried again
    assert capsys.readouterr().out == f"{output}: 1 captioned, 2 known\n"
    assert len(api.asked) == 7 and not (tmp_path / "captions.failed.txt").exists()
    assert set(read_captions(output).values()) == {Caption("A cat. It sits.", "A cat. It sits.")}
    assert {json.loads(line)["source"] for line in output.read_text().splitlines()} == {"llava, paper instructions"}

    api.models = ["a", "b"]
    assert main(command) == 1
    assert capsys.readouterr().err == f"error: {api.url} has 2 models; name one with --model: a, b\n"
