"""The model card of a run: the base model, how and on which images it was trained, and the last validation's scores."""

from pathlib import Path

from xpsr_jax.config import Config
from xpsr_jax.training.log import is_validation, read_metrics
from xpsr_jax.weights import hub
from xpsr_jax.weights.model_card import Card, card_of, public_name


def run_card(config: Config, *, photographs: int, step: int, run: Path | None = None) -> Card:
    """The card of a run's model after the given step.

    Args:
      photographs: the number of training photographs.
      run: the run's folder; None: the config's.
    """
    folders = [hub.local(base) for base in config.networks.base]
    bases = [str(base) if not base.exists() else public_name(base) for base in config.networks.base]
    of_base = card_of([folder for folder in folders if folder.is_dir()])
    return Card(
        name=config.name,
        base=tuple(bases),
        licence=of_base.licence,
        from_nothing=not bases,
        training=_training(config, photographs, step),
        scores=_scores((run or config.run_folder) / "metrics.jsonl", config, step),
    )


def _training(config: Config, photographs: int, step: int) -> tuple[str, ...]:
    images, optimizer, data = config.images, config.optimizer, config.data
    folders = [folder for _, folder in images.mixture] or [images.folder]
    trained = ", ".join(pattern for pattern, is_trained in config.trained if is_trained)
    return (
        f"stage {config.stage}, {step} of {config.steps} steps of {config.batch_size} images",
        f"trained: {trained}",
        f"on {photographs} photographs of {', '.join(folder.name for folder in folders)}, crops of {data.crop_size} "
        f"pixels{', degraded on the way' if data.degrade else ''}",
        f"AdamW, learning rate {optimizer.learning_rate:g} ({optimizer.schedule}), weight decay "
        f"{optimizer.weight_decay:g}" + (f", moving average {optimizer.ema:g}" if optimizer.ema else ""),
        f"seed {config.seed}, computed in {config.precision.dtype}",
    )


def _scores(file: Path, config: Config, step: int) -> dict[str, float]:
    """The scores of the last validation up to this step; empty if there was no validation."""
    if not file.is_file():
        return {}
    validations = [line for line in read_metrics(file, until=step) if is_validation(line)]
    last = validations[-1] if validations else {}
    where = f"of {config.validation.count} validation pictures after step {last.get('step')}"
    names = {name: name.removeprefix("validation_") for name in last if name.startswith("validation_")}
    return {f"{shown} {where}": last[name] for name, shown in names.items()}
