"""The page as users have it: in its own process, opened in a real Chromium without a window.

Neither may contact anything outside this machine. Every test checks the browser's requests and the server's
connections.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, ImageCms
from playwright.sync_api import Browser, expect, sync_playwright

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "xpsr_jax" / "assets" / "demo" / "lr.png"
expect.set_options(timeout=60_000)
# Records every address to which a process connects or that it looks up.
_WATCH = """
import os, sys
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple): address = args[1][0]
    elif event == "socket.getaddrinfo": address = args[0]
    else: return
    with open(os.environ["WATCHED"], "a") as file: file.write(f"{address}\\n")
sys.addaudithook(watch)
"""


@dataclasses.dataclass
class Server:
    """A server of the page.

    Attributes:
        address: URL of the page.
        log: its output, with a line for each program that JAX compiles.
        watched: the addresses to which it connected.
    """

    address: str
    log: Path
    watched: Path

    def compiled(self) -> int:
        return self.log.read_text().count("Compiling jit(")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The page with small limits. All tests share it."""
    limits = ["--max-upload-megabytes", 0.2, "--max-megapixels", 0.5, "--max-files", 3, "--max-sessions", 100]
    with running(tmp_path_factory.mktemp("server"), *limits) as server:
        yield server


@contextlib.contextmanager
def running(folder: Path, *options: object) -> Iterator[Server]:
    """Serves the page. At the end, checks its exit code, its log, its connections and the files that it left."""
    (folder / "sitecustomize.py").write_text(_WATCH)
    log, watched, temporary = folder / "log", folder / "watched", folder / "temporary"
    watched.touch()
    temporary.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "WATCHED": str(watched),
        "TMPDIR": str(temporary),
        "JAX_LOG_COMPILES": "1",
        # Environment variables must not override the command line.
        "GRADIO_ALLOWED_PATHS": "/",
        "GRADIO_SHARE": "True",
        "GRADIO_MCP_SERVER": "True",
    }
    command = [sys.executable, "-u", "-m", "xpsr_jax.app", "--port", port, *options]
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=subprocess.STDOUT, env=one_device() | environment
        )
    try:
        deadline = time.monotonic() + 300
        while "Browsers may open it" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Server(f"http://127.0.0.1:{port}/", log, watched)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 130
        assert not list(temporary.glob("xpsr-page-*")), "what visitors uploaded is deleted at the end"
    finally:
        process.kill()
    lines = [line for line in log.read_text().splitlines() if not line.startswith("WARNING:jax")]
    assert not any("Traceback" in line for line in lines), "\n".join(lines[-60:])
    assert set(watched.read_text().split()) <= {"127.0.0.1", "localhost", "None"}


def one_device() -> dict[str, str]:
    """The environment without the eight devices that other tests use."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium")
    assert chromium, "the tests of the page need Debian's chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser):
    """Opens pages by URL and width. A narrow page is on a phone. At the end, checks the requests of all pages."""
    contexts, asked, errors = [], [], []

    def open_(address: str, width: int = 1280):
        phone = width < 700
        context = browser.new_context(
            viewport={"width": width, "height": 844}, has_touch=phone, is_mobile=phone, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not errors
    elsewhere = {url for url in asked if urlsplit(url).scheme not in ("data", "blob", "file")}
    assert {urlsplit(url).hostname for url in elsewhere} <= {"127.0.0.1"}


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    """A small photograph with all metadata: transparency, a colour profile, EXIF."""
    path = tmp_path_factory.mktemp("photos") / "small & wet.png"
    rgb = np.asarray(Image.open(DEMO).convert("RGB"))[40:72, 40:72]
    alpha = np.linspace(0, 255, 32).astype(np.uint8)[None].repeat(32, 0)
    exif = Image.Exif()
    exif[0x010F] = "A maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(np.dstack([rgb, alpha])).save(path, exif=exif, icc_profile=profile)
    return path


@pytest.fixture(scope="session")
def broken(tmp_path_factory, photo):
    """A file that is cut off."""
    path = tmp_path_factory.mktemp("photos") / "<b>broken.png"
    path.write_bytes(photo.read_bytes()[:-200])
    return path


def sample(folder: Path, photos: list[Path], *options: object) -> None:
    """Runs sample.py like a user."""
    command = [sys.executable, ROOT / "sample.py", *photos, "--output", folder, *options]
    environment = one_device() | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
