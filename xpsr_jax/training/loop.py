"""A training run from its config to its exported model, resumed where it stopped."""

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from tensorboardX import SummaryWriter
from tqdm import tqdm

from xpsr_jax import sharding
from xpsr_jax.config import Config, Images
from xpsr_jax.data.pipeline import make_pipeline
from xpsr_jax.data.sources import ImageFolder
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.perceptual import Lpips
from xpsr_jax.training.checkpoints import Checkpoints
from xpsr_jax.training.export import export, load_tokenizer
from xpsr_jax.training.state import initial_parameters, initial_state, make_optimizer, make_structure
from xpsr_jax.training.step import make_step
from xpsr_jax.training.validation import Validator


def train(config: Config) -> Path | None:
    """Runs or resumes the training in `config.run_folder` and exports the model when its last step is done.

    The run folder holds config.json, checkpoints/, tensorboard/, samples/ (validation pictures), metrics.jsonl and, at the end, model/.

    Returns:
      The exported model folder; None when the run was stopped early (SIGTERM, Ctrl-C): its state is saved.
    """
    run = config.run_folder
    mesh = sharding.make_mesh(config.mesh)
    if config.batch_size % (mesh.size * config.accumulation):
        raise UserError(f"batch_size={config.batch_size} must be a multiple of {mesh.size} devices x accumulation={config.accumulation}")
    structure = make_structure(config)
    tokenizer = load_tokenizer(config.networks)
    source = open_images(config.images)
    data = iter(
        make_pipeline(
            source,
            config.data,
            tokenizer=tokenizer,
            seed=config.seed,
            batch_size=config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    )
    trained, frozen = initial_parameters(structure, mesh, seed=config.seed, frozen_dtype=config.precision.frozen_dtype)
    optimizer = make_optimizer(config, structure.trained)
    state = initial_state(config, trained, optimizer, mesh)
    del trained
    constants = jax.device_put(Lpips.load(config.loss.backbone), sharding.replicated(mesh)) if config.stage == "autoencoder" else None
    step = make_step(config, structure, optimizer, state, mesh)
    validator = Validator(config, structure, tokenizer)

    with Checkpoints(run / "checkpoints", keep=config.keep) as checkpoints, _stop_signals() as stopped, _Log(run, config) as log:
        if checkpoints.latest is not None:
            state = checkpoints.restore(checkpoints.latest, state, data)
        done = first = int(state.step)
        log.say(f"{run}: step {done} of {config.steps}, {len(source)} photographs, {mesh.size} devices")
        recent: list[Any] = []
        for done in tqdm(range(first + 1, config.steps + 1), initial=first, total=config.steps, disable=jax.process_index() > 0, mininterval=5):
            state, terms = step(state, frozen, constants, sharding.shard_batch(next(data), mesh))
            recent.append(terms)
            if done % config.log_every == 0 or done == config.steps:
                log.terms(done, recent, config.batch_size)
                recent = []
            if done % config.checkpoint_every == 0 or done == config.steps or stopped:
                checkpoints.save(done, state, data, config)
            if stopped:
                log.say(f"stopped at step {done}; the same command goes on from there")
                return None
            if config.validation.every and done % config.validation.every == 0:
                log.pictures(done, validator(state, frozen, done))
        parameters = state.trained if state.average is None else state.average
        return export(config, structure, parameters, frozen, source, run / "model")


def open_images(images: Images) -> ImageFolder:
    captions = images.captions or images.folder / "captions.jsonl"
    if images.captions is None and not captions.is_file() and images.missing_captions == "empty":
        return ImageFolder(images.folder, exclude=images.exclude, cache=images.cache)
    return ImageFolder(images.folder, exclude=images.exclude, captions=captions, missing=images.missing_captions, cache=images.cache)


class _Log:
    """Scalars and pictures to TensorBoard, scalars also to metrics.jsonl; only the first process writes."""

    def __init__(self, run: Path, config: Config):
        self._run, self._writes = run, jax.process_index() == 0
        self._since = time.monotonic()

    def __enter__(self) -> "_Log":
        if self._writes:
            self._run.mkdir(parents=True, exist_ok=True)
            self._board = SummaryWriter(str(self._run / "tensorboard"))
            self._metrics = (self._run / "metrics.jsonl").open("a", buffering=1)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._writes:
            self._board.close()
            self._metrics.close()

    def say(self, text: str) -> None:
        if self._writes:
            tqdm.write(text)

    def terms(self, step: int, recent: list[dict[str, Array]], batch_size: int) -> None:
        """Means since the last call. Raises UserError where the loss is no longer a number."""
        means = {name: float(np.mean([terms[name] for terms in recent])) for name in recent[0]}
        now = time.monotonic()
        means["images_per_second"] = batch_size * len(recent) / (now - self._since)
        self._since = now
        if not np.isfinite(means["loss"]):
            raise UserError(f"the loss became {means['loss']} before step {step}; lower the learning rate, then start again: the last checkpoint is kept")
        if self._writes:
            for name, value in means.items():
                self._board.add_scalar(name, value, step)
            self._metrics.write(json.dumps({"step": step} | means) + "\n")
            self.say(f"{step}: " + ", ".join(f"{name} {value:.4g}" for name, value in means.items() if "_" not in name or name == "images_per_second"))

    def pictures(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        for name, picture in pictures.items() if self._writes else ():
            self._board.add_image(name, picture, step, dataformats="HWC")


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or Ctrl-C arrives, so that the step at hand is finished and saved."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
