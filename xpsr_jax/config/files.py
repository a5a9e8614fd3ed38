"""Config files, which define `config(variant)`."""

import importlib.util
from pathlib import Path

from xpsr_jax.config.training import Config
from xpsr_jax.errors import UserError


def load_config(name: str) -> Config:
    """The Config of a file of `configs/`: "configs/tiny.py", or "configs/tiny.py:autoencoder" for one of its variants.

    The file defines `config(variant="default") -> Config` and `VARIANTS`, the names that it knows.
    """
    file, _, variant = name.partition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"There is no config file {file}; the project's are in configs/.")
    spec = importlib.util.spec_from_file_location(f"xpsr_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "VARIANTS") or not hasattr(module, "config"):
        raise UserError(f"{file} is no config file: it defines no VARIANTS and no config(variant); see configs/.")
    variant = variant or "default"
    if variant not in module.VARIANTS:
        raise UserError(f"{file} has no variant {variant!r}; it has {', '.join(module.VARIANTS)}.")
    config: Config = module.config(variant)
    return config
