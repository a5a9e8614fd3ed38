"""The same settings for every test: eight CPU devices, full float32 matrix products, compiled programs cached on disk.

They are environment variables instead of jax.config, and are set before anything imports jax. The processes that tests
start therefore get them too.
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
# Sharding is tested on eight devices. Other tests use the first one, and the rest cost nothing
# (docs/understand/decisions.md).
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
# No test uses the real Hugging Face hub. Those in tests/hub have their own server.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

# Tracing creates millions of small objects that are kept. With its default settings, Python's garbage collector scans
# all of them again and again, which takes a fifth of the time of tests that compile.
gc.set_threshold(100_000, 20, 10)

# test_shapes.py needs checked annotations, so it runs only with this variable.
collect_ignore = [] if os.environ.get("XPSR_JAX_CHECK_SHAPES") else ["test_shapes.py"]
# `make test-shapes`: every annotation of the package is checked at each call, shapes and dtypes included. An int is
# accepted as a float, as usual in Python. Processes that tests start run without these checks, like a user's.
if os.environ.get("XPSR_JAX_CHECK_SHAPES"):
    assert not any(name.startswith("xpsr_jax") for name in sys.modules), "xpsr_jax was already imported, without checks"
    install_import_hook("xpsr_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# With pytest-xdist, each worker uses one core. XLA sets its number of threads to the number of cores that it may use.
if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# The files that take longest. Workers run whole files: if one of these came last, the other workers would be idle.
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
    """Puts the files that take longest first (see --no-loadscope-reorder in the Makefile)."""
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of golden files. Its README.md describes the source of each."""
    return ROOT / "tests" / "vectors"


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns the checks of annotations off, for tests that pass wrong types to see the error for users."""
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def compiled_quickly() -> Iterator[None]:
    """Halves the time of compilation. Small arrays take hardly longer, but rounding errors are larger.

    It also applies to processes that these tests start. Its scope is the module: with the scope "package", pytest would
    keep the fixture until the end of all tests, because a folder is not a package for it.

    The profile's version does not change a program, but it is part of jit's cache key. The optimizations are not part
    of that key: without the version, a test could use a program that was compiled with the other setting.
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
