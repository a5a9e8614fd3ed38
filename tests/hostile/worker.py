"""Runs each command in a process forked from one that has imported the package. It starts in 10 ms instead of 10 s.

Tests use `Worker`. Its process reads one job per line, and answers each with two lines: the id of the new process, and
how the command ended. JAX is imported there, but no backend is started, because a fork would lose the backend's
threads.
"""

import dataclasses
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
# Functions by the names of commands. Other functions are named as "module:function".
COMMANDS = {name: f"xpsr_jax.cli.{name}:main" for name in ("caption", "convert", "evaluate", "prepare", "train")}
COMMANDS["sample"] = "xpsr_jax.cli.restore:main"
# Modules that commands import while they run.
_LATE = (
    "xpsr_jax.inference.restore",
    "xpsr_jax.training.loop",
    "xpsr_jax.training.checkpoint_source",
    "xpsr_jax.weights.convert",
    "scipy.ndimage",
)
MEMORY = 3 * 2**30


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
      code: its exit code. Negative: the signal that ended it. -9 may be the limit of memory or time.
      out, err: its output on stdout and stderr. Invalid bytes become U+FFFD.
      seconds: how long it ran.
      bytes: its peak memory.
    """

    code: int
    out: str
    err: str
    seconds: float
    bytes: int


class Running:
    """A running command.

    Attributes:
      process: the id of its process.
    """

    def __init__(self, answers: IO[bytes]) -> None:
        self._answers = answers
        self._ended: Ended | None = None
        self.process: int = json.loads(answers.readline())

    def poll(self) -> Ended | None:
        """How the command ended, or None while it runs."""
        if self._ended is None and select.select([self._answers], [], [], 0)[0]:
            self.wait()
        return self._ended

    def wait(self) -> Ended:
        """Waits until the command has ended."""
        self._ended = self._ended or Ended(**json.loads(self._answers.readline()))
        return self._ended

    def kill(self) -> Ended:
        """Kills the command if it still runs."""
        if self.poll() is None:
            _kill(self.process)
        return self.wait()


class Worker:
    """The process that forks. It is a context manager, and runs one command at a time."""

    def __init__(self) -> None:
        settings = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
        settings |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        settings |= {"TOKENIZERS_PARALLELISM": "false"}  # a fork would not have its threads
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=ROOT,
            env=os.environ | settings,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def start(self, command: str, words: Sequence[str | Path], *, cwd: Path, seconds: float = 60) -> Running:
        """Starts a command of `COMMANDS`, or "module:function", with these words. It is killed after `seconds`."""
        job = {"main": COMMANDS.get(command, command), "words": [str(word) for word in words]}
        job |= {"cwd": str(cwd), "seconds": seconds}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        return Running(self._process.stdout)

    def run(self, command: str, words: Sequence[str | Path], *, cwd: Path, seconds: float = 60) -> Ended:
        """Starts a command and waits until it has ended."""
        return self.start(command, words, cwd=cwd, seconds=seconds).wait()


def _serve() -> None:
    from xpsr_jax.weights.model_folder import load_tokenizer
    from xpsr_jax.weights.sources import SHIPPED_TOKENIZER

    for main in COMMANDS.values():
        importlib.import_module(main.partition(":")[0])
    for name in _LATE:
        importlib.import_module(name)
    load_tokenizer(SHIPPED_TOKENIZER)  # transformers imports its modules at first use
    for line in sys.stdin.buffer:
        ended = _fork(json.loads(line))
        print(json.dumps(dataclasses.asdict(ended)), flush=True)


def _fork(job: dict[str, Any]) -> Ended:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        child = os.fork()
        if not child:
            _be_the_command(job, out.fileno(), err.fileno())
        print(child, flush=True)
        most = 0
        while True:
            done, status, usage = os.wait4(child, os.WNOHANG)
            if done:
                break
            most = max(most, _memory(child))
            if time.monotonic() - began > job["seconds"] or most > MEMORY:
                _kill(child)
            time.sleep(0.005)
        seconds = time.monotonic() - began
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Ended(os.waitstatus_to_exitcode(status), *texts, seconds, max(most, usage.ru_maxrss * 1024))


def _kill(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # it does not have its own process group yet
        os.kill(child, signal.SIGKILL)


def _memory(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):  # it ended just now
        return 0


def _be_the_command(job: dict[str, Any], out: int, err: int) -> None:
    code = 99
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, file in enumerate((nothing, out, err)):
            os.dup2(file, number)
        os.chdir(job["cwd"])
        module, name = job["main"].split(":")
        code = getattr(importlib.import_module(module), name)(job["words"]) or 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
