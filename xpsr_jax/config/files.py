"""Config files, which define `config(variant)`."""

import importlib.util
from pathlib import Path

from xpsr_jax.config.training import Config
from xpsr_jax.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def config_folder() -> Path:
    """Where the project's config files are: `xpsr_jax/configs` of an installed package, `configs` of a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """The names of the project's configs."""
    return sorted(path.stem for path in config_folder().glob("*.py"))


def load_config(name: str) -> Config:
    """The Config of that name, "tiny", or of a file, "my/config.py"; with ":autoencoder" behind it one of its variants.

    A name is one of the project's configs; what ends with .py or has a slash is a file. The file defines
    `config(variant="default") -> Config` and `VARIANTS`, the names that it knows.

    Raises UserError if there is no such config, or it has no such variant.
    """
    file, _, variant = name.partition(":")
    path = Path(file) if "/" in file or file.endswith(".py") else config_folder() / f"{file}.py"
    if not path.is_file():
        names = ", ".join(config_names())
        if path == Path(file):
            raise UserError(f"There is no config file {file}; by name there are {names}.")
        raise UserError(f"There is no config {file!r}; there are {names}. A file of your own: --config FILE.py")
    spec = importlib.util.spec_from_file_location(f"xpsr_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is no config file: its name does not end with .py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "VARIANTS") or not hasattr(module, "config"):
        raise UserError(f"{file} is no config file: it defines no VARIANTS and no config(variant); see configs/.")
    variant = variant or "default"
    if variant not in module.VARIANTS:
        raise UserError(f"{file} has no variant {variant!r}; it has {', '.join(module.VARIANTS)}.")
    config: Config = module.config(variant)
    return config
