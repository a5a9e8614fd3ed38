"""Loads config files. A config file defines `config(variant)`."""

import importlib.util
from pathlib import Path

from xpsr_jax.config.training import Config
from xpsr_jax.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def config_folder() -> Path:
    """Folder of the project's config files: `xpsr_jax/configs` in an installed package, `configs` in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """The names of the project's configs."""
    return sorted(path.stem for path in config_folder().glob("*.py"))


def load_config(name: str) -> Config:
    """Loads a config by name ("tiny") or by file ("my/config.py"). A suffix such as ":autoencoder" chooses a variant.

    A text that ends with .py or contains a slash is a file. Anything else is the name of one of the project's configs.
    The file defines `config(variant="default") -> Config`, and `VARIANTS`, the names of its variants.

    Raises UserError if the config or the variant does not exist.
    """
    file, _, variant = name.partition(":")
    path = Path(file) if "/" in file or file.endswith(".py") else config_folder() / f"{file}.py"
    if not path.is_file():
        names = ", ".join(config_names())
        if path == Path(file):
            raise UserError(f"config file {file} does not exist; configs with a name are {names}")
        raise UserError(f"unknown config {file!r}; configs are {names}, and your own files: --config FILE.py")
    spec = importlib.util.spec_from_file_location(f"xpsr_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is not a config file: its name does not end with .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "VARIANTS") or not hasattr(module, "config"):
        raise UserError(f"{file} is not a config file: it must define VARIANTS and config(variant); see configs/")
    variant = variant or "default"
    if variant not in module.VARIANTS:
        raise UserError(f"{file} has no variant {variant!r}; it has {', '.join(module.VARIANTS)}")
    config: Config = module.config(variant)
    return config
