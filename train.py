"""Trains XPSR: `python train.py --config configs/xpsr.py [--train.steps 1000 ...]`. The same command resumes a run that was stopped."""

import sys

import tyro

from xpsr_jax.config import Config, load_config
from xpsr_jax.errors import UserError


def main(arguments: list[str]) -> int:
    if arguments[:1] != ["--config"] or len(arguments) < 2:
        print("usage: python train.py --config configs/NAME.py[:VARIANT] [--FIELD VALUE ...]   (--help after the config lists the fields)", file=sys.stderr)
        return 2
    try:
        config = tyro.cli(Config, default=load_config(arguments[1]), args=arguments[2:], prog=f"train.py --config {arguments[1]}")
        # Imported late: --help and a wrong config should not wait for JAX.
        from xpsr_jax.training.loop import train

        folder = train(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if folder is None:
        return 130
    print(f"model: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
