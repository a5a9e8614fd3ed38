"""The package as a whole: fast imports, all public names, and pinned dependencies."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import xpsr_jax

ROOT = Path(__file__).parents[1]


def test_importing_the_package_imports_no_jax() -> None:
    program = "import sys, xpsr_jax; print('jax' in sys.modules, xpsr_jax.__version__)"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", xpsr_jax.__version__]


def test_the_settings_import_no_array_library() -> None:
    """Help is therefore shown at once, and wrong settings are refused before anything else is loaded."""
    heavy = {"cv2", "flax", "grain", "huggingface_hub", "jax", "numpy", "orbax", "PIL", "scipy", "transformers"}
    program = f"import sys, xpsr_jax.config, configs.tiny, configs.xpsr; print({heavy!r} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_all_public_names_exist() -> None:
    assert all(getattr(xpsr_jax, name) for name in xpsr_jax.__all__)


def test_constraints_pin_every_dependency_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    accelerators = ("tpu", "cuda")
    extras = [
        each for name, extra in project["optional-dependencies"].items() if name not in accelerators for each in extra
    ]
    for requirement in project["dependencies"] + extras:
        name, bound = requirement.split(">=")
        version, least = ([int(part) for part in number.split(".")] for number in (pinned[name], bound))
        assert version >= least, f"{name} {pinned[name]} is below {bound}"
