"""Captioning that is interrupted, killed, or stopped by a full disk. Finished lines are kept, and it can be resumed."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from xpsr_jax.cli.caption import main
from xpsr_jax.data.captions import read_caption_records, read_captions

# The command with a captioner that takes a minute for some images.
SLOW = """
import signal, sys, time
from xpsr_jax.cli import caption as command
from xpsr_jax.caption.in_flight import in_flight
from xpsr_jax.data.captions import Caption
def slow(image):
    time.sleep(0.01 if image.name < "3" else 60)
    return Caption("a", "b")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell turns it off for background processes
command.make_captioner = lambda _: (lambda images: in_flight(slow, images, 2), "slow")
sys.exit(command.main(sys.argv[1:]))
"""
# Its files may not grow beyond 100 bytes.
FULL = """
import resource, signal, sys
from pathlib import Path
from xpsr_jax.caption.captions_file import CaptionsFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
with CaptionsFile(Path(sys.argv[1])) as file:
    for i in range(9):
        file.append({"image": str(i), "high": "ten chars.", "low": ""})
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_interrupted_and_killed_work_is_resumed(tmp_path, number, code):
    """The command does not wait for running requests."""
    (tmp_path / "photos").mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    output = tmp_path / "captions.jsonl"
    command = [sys.executable, "-c", SLOW, "measured", tmp_path / "photos", "--output", output]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while process.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") < 3):
        assert time.monotonic() < until, "three captions took more than a minute"
        time.sleep(0.02)
    begin = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code and time.monotonic() - begin < 5
    if number == signal.SIGINT:
        assert said.endswith("interrupted; run the same command again to resume\n")
    assert sorted(read_caption_records(output)) == ["0.png", "1.png", "2.png"]
    assert main(["measured", str(tmp_path / "photos"), "--output", str(output)]) == 0
    assert len(read_captions(output)) == 6


def test_a_full_disk_leaves_whole_lines(tmp_path):
    output = tmp_path / "c.jsonl"
    run = subprocess.run([sys.executable, "-c", FULL, output], capture_output=True, text=True)
    assert "cannot be written" in run.stderr.splitlines()[-1]
    assert list(read_caption_records(output)) == ["0", "1"]
