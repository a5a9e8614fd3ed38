"""Prints versions, devices, caches and free space, to paste into a bug report. Nothing is computed or downloaded.

A check that fails gives one line, even if JAX itself is broken.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xpsr_jax.cli.groups import Grouped, grouped, parse
from xpsr_jax.cli.run import command
from xpsr_jax.errors import in_one_line, say
from xpsr_jax.machine import cache_folder
from xpsr_jax.version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers", "pillow", "tyro")
# Variables that change the programs' behaviour. Values that may be secret are hidden.
_VARIABLES = re.compile(r"(JAX|XLA|XPSR_JAX|LIBTPU|TPU|CUDA_VISIBLE|HF_(HOME|HUB|ENDPOINT))(_\w+)?")
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")
_PATIENCE = 120  # seconds
_MOST_FILES = 100_000  # number of files of a cache that are counted, so that a slow disk takes little time


@dataclass(frozen=True)
class Arguments:
    """The command line: there are no options."""


@command(interrupted="interrupted", lower="close other programs")
def main(argv: Sequence[str] | None) -> None:
    """Runs the command line; returns the exit code: always 0, or 130 if interrupted."""
    parse(arguments(), argv, name="doctor", text=__doc__)
    for title, look in SECTIONS.items():
        lines = _apart(title) if look in (devices, kernels) else list(_lines(look))
        say("\n".join([f"{title + ':':12}{lines[0]}", *(f"{'':12}{line}" for line in lines[1:])]))


def arguments() -> type[Grouped[Arguments]]:
    """The type that a command line is parsed into."""
    return grouped(Arguments, {})


def _apart(title: str) -> list[str]:
    """The lines of a section that uses devices, from a separate process: a driver may crash it, or never answer."""
    program = f"from xpsr_jax.cli.doctor import SECTIONS, _lines; print(*_lines(SECTIONS[{title!r}]), sep=chr(10))"
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return [f"failed: no answer within {_PATIENCE} s"]
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return [in_one_line(f"failed: the process ended with exit code {done.returncode}: {said}")]
    return done.stdout.splitlines()


def _lines(look: Callable[[], Iterator[str]]) -> Iterator[str]:
    """The findings, one line each. An error is one line too. A broken package may raise any type of error."""
    found = False
    try:
        for line in look():
            found = True
            yield in_one_line(line)
    except Exception as error:
        found = True
        yield in_one_line(f"failed: {type(error).__name__}: {error}")
    if not found:
        yield "none"


def versions() -> Iterator[str]:
    """Versions of this package, Python, the system and the main dependencies."""
    yield f"xpsr-jax {__version__} ({Path(__file__).parents[1]})"
    yield f"Python {platform.python_version()} ({sys.executable})"
    yield f"{platform.platform()}, {os.cpu_count()} CPUs"
    for name in _PACKAGES:
        yield f"{name} {_version(name) or 'is not installed'}"


def devices() -> Iterator[str]:
    """The devices that JAX finds, with their memory if it is known."""
    import jax

    for device in jax.local_devices():
        line = f"{device.platform} {device.id}: {device.device_kind}"
        try:
            memory = device.memory_stats() or {}
        except Exception as error:  # One device may fail while the others work.
            yield f"{line}, failed: {type(error).__name__}: {error}"
            continue
        if limit := memory.get("bytes_limit"):
            line += f", {_size(limit - memory.get('bytes_in_use', 0))} of {_size(limit)} free"
        yield line
    if jax.process_count() > 1:
        yield f"process {jax.process_index()} of {jax.process_count()}"


def kernels() -> Iterator[str]:
    """The kernels that "auto" chooses, for the attention of Stable Diffusion at 512 × 512 pixels."""
    import jax
    import jax.numpy as jnp

    from xpsr_jax.models.attention import automatic_kernel

    for dtype in (jnp.float32, jnp.bfloat16):
        queries = jax.ShapeDtypeStruct((1, 4096, 8, 40), dtype)
        yield f"attention, {jnp.dtype(dtype).name}: {automatic_kernel(queries, queries)}"
    convolutions = "Winograd's" if jax.default_backend() == "cpu" else "XLA's"
    yield f"convolutions in inference, float32: {convolutions}"


def caches() -> Iterator[str]:
    """The caches and their sizes."""
    own, home = cache_folder(), Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    named = {
        "xpsr_jax": own,
        "compiled programs": os.environ.get("JAX_COMPILATION_CACHE_DIR") or own,
        "Hugging Face": os.environ.get("HF_HUB_CACHE") or home / "hub",
    }
    for name, folder in named.items():
        yield f"{name}: {'none' if folder is None else _folder_text(str(folder))}"


def room() -> Iterator[str]:
    """Free memory, and free space on disks."""
    yield f"memory: {_memory_text()}"
    own = cache_folder()
    places = {"this folder": Path.cwd(), "temporary files": Path(os.environ.get("TMPDIR") or "/tmp")}
    for name, place in (places | ({"caches": own} if own else {})).items():
        there = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
        usage = shutil.disk_usage(there)
        yield f"disk for {name} ({there}): {_size(usage.free)} of {_size(usage.total)} free"


def extras() -> Iterator[str]:
    """The installed extras of the package with versions, and the missing packages of the others."""
    needs: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("xpsr-jax") or ():
        if found := re.match(r"""([\w.-]+).*\bextra\s*==\s*['"]([\w-]+)['"]""", requirement):
            needs.setdefault(found[2], []).append(found[1])
    for extra, packages in needs.items():
        if extra in ("tpu", "cuda"):  # extras of JAX itself
            packages = [*packages, "libtpu" if extra == "tpu" else "jax-cuda13-plugin"]
        installed = {name: _version(name) for name in packages}
        missing = [name for name, version in installed.items() if version is None]
        there = ", ".join(f"{name} {version}" for name, version in installed.items() if version)
        yield f"{extra}: {f'lacks {chr(44).join(missing)}' if missing else f'installed ({there})'}"


def variables() -> Iterator[str]:
    """Environment variables that JAX and this package read."""
    for name, value in sorted(os.environ.items()):
        if _VARIABLES.fullmatch(name):
            yield f"{name}={'(hidden)' if _SECRET.search(name) else value}"


SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    "versions": versions,
    "devices": devices,
    "kernels": kernels,
    "caches": caches,
    "room": room,
    "extras": extras,
    "variables": variables,
}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _folder_text(folder: str) -> str:
    """A folder and the total size of its files."""
    if not os.path.isdir(folder):
        return f"{folder}, does not exist yet"
    count = total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:  # removed in the meantime
                continue
            count += 1
        if count > _MOST_FILES:
            return f"{folder}, more than {_size(total)}"
    return f"{folder}, {_size(total)} in {count:,} files"


def _memory_text() -> str:
    """Free memory. Linux shows it in a file."""
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return f"{_size(int(found['MemAvailable']) * 1024)} of {_size(int(found['MemTotal']) * 1024)} free"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
