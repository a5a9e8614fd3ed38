"""One setting for every test: eight CPU devices, full float32 matrix products, compiled programs kept on disk.

Environment variables, not jax.config, and before anything imports jax: so the processes that tests start get the same.
"""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]

assert "jax" not in sys.modules, "jax was imported before tests/conftest.py could choose its devices"

os.environ["JAX_PLATFORMS"] = "cpu"
# Sharding is tested on eight devices. Other tests use the first one and pay nothing for the rest
# (docs/understand/decisions.md).
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
# No test asks the Hugging Face hub; those in tests/hub have a server of their own.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

# Tracing makes millions of small objects that live on. Python's collector, as it is set by default, goes through all of
# them again and again: a fifth of the time of tests that compile.
gc.set_threshold(100_000, 20, 10)

# Its tests need checked annotations, which other targets do not have.
collect_ignore = [] if os.environ.get("XPSR_JAX_CHECK_SHAPES") else ["test_shapes.py"]
# `make test-shapes`: every annotation of the package is checked at each call, shapes and dtypes included. An int may
# stand for a float, as everywhere in Python. Processes that tests start run without these checks, as users do.
if os.environ.get("XPSR_JAX_CHECK_SHAPES"):
    assert not any(name.startswith("xpsr_jax") for name in sys.modules), "xpsr_jax is there already, unchecked"
    install_import_hook("xpsr_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# Under pytest-xdist each worker keeps to one core: XLA takes its number of threads from the cores it may use.
if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# Files that take longest. Workers take whole files: one of these at the end would leave the others idle.
SLOWEST = (
    "test_kills",
    "test_few_step",
    "test_loop",
    "test_ablations",
    "test_sampling",
    "test_processes",
    "test_meshes",
    "test_oracle_training",
    "test_restore",
    "test_v0_1",
    "test_cached_features",
    "test_large",
    "test_sample_cli",
    "test_plan",
    "test_oracle_forward",
    "test_autoencoder_stage",
    "test_oracle_tiles",
    "test_formats",
    "test_attention",
    "test_stock",
    "test_model_folder",
    "test_every_command",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first (see --no-loadscope-reorder in the Makefile)."""
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of golden files; its README.md says where each comes from."""
    return ROOT / "tests" / "vectors"


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations are not checked: of tests that pass what they do not allow, to see what a user is told."""
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def compiled_quickly() -> Iterator[None]:
    """Half the time of compilation for hardly more time of execution on small arrays; rounding is larger.

    Also in the processes that these tests start. Of each module: a folder is no package to pytest, and a fixture of
    that scope would stay until the last of all tests.

    The profile's version changes nothing in a program, but it is a part of the key under which jit keeps it, and the
    optimizations are not: without it a test would run what another compiled in the other way, and round in its way.
    """
    import jax

    settings = {"jax_disable_most_optimizations": (False, True), "jax_xla_profile_version": (0, 1)}
    with pytest.MonkeyPatch.context() as patch:
        for name, (_, quickly) in settings.items():
            patch.setenv(name.upper(), str(int(quickly)))
            jax.config.update(name, quickly)
        yield
        for name, (fully, _) in settings.items():
            jax.config.update(name, fully)
