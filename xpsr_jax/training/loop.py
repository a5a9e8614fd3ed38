"""A training run from its config to its exported model, resumed where it stopped."""

import contextlib
import functools
import signal
from collections.abc import Iterator
from pathlib import Path

import jax

from xpsr_jax import sharding
from xpsr_jax.config import Config
from xpsr_jax.data.pipeline import make_pipeline
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.perceptual import load_distance
from xpsr_jax.inference.image_io import check_writable
from xpsr_jax.training import resume
from xpsr_jax.training.checkpoints import Checkpoints
from xpsr_jax.training.embeddings import check_embeddings
from xpsr_jax.training.export import export, load_tokenizer
from xpsr_jax.training.images import open_images
from xpsr_jax.training.log import Log, check_wandb
from xpsr_jax.training.parameters import initial_parameters
from xpsr_jax.training.plot import plot_losses
from xpsr_jax.training.profiling import Profiler
from xpsr_jax.training.state import abstract_state, initial_state, make_optimizer
from xpsr_jax.training.step import make_step
from xpsr_jax.training.structure import make_structure
from xpsr_jax.training.validation import Validator
from xpsr_jax.weights.torch_files import write_json


def train(config: Config) -> Path | None:
    """Runs or resumes the training in `config.run_folder` and exports the model when its last step is done.

    The run folder's README.md says what is in it.

    Returns:
      The exported model folder; None when the run was stopped early (SIGTERM, Ctrl-C): its state is saved.

    Raises:
      UserError: settings or files that cannot be trained with (nothing is written then), or a loss that is no number.
    """
    run = config.run_folder
    check_wandb(config.wandb)
    mesh = sharding.make_mesh(config.mesh)
    if config.batch_size % (mesh.size * config.accumulation):
        raise UserError(
            f"batch_size={config.batch_size} must be a multiple of "
            f"{mesh.size * config.accumulation}: {mesh.size} devices x accumulation={config.accumulation}"
        )
    structure = make_structure(config)
    optimizer = make_optimizer(config, structure.trained)
    tokenizer = load_tokenizer(config.networks)
    source = open_images(config.images)
    base = resume.fingerprints(structure)
    check_embeddings(config, structure, base)
    record = resume.record(config, photographs=len(source), base=base)
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
    check_writable(run)
    with contextlib.closing(data), Checkpoints(run / "checkpoints", keep=config.keep) as checkpoints:
        first = checkpoints.latest or 0
        changed = resume.changes(checkpoints.record(first), record) if first else []
        if jax.process_index() == 0:
            write_json(record, run / "config.json")

        shardings = sharding.parameter_shardings(structure.shapes(), mesh)
        start = functools.partial(
            initial_parameters,
            structure,
            shardings=shardings,
            seed=config.seed,
            frozen_dtype=config.precision.frozen_dtype,
        )
        frozen = start(structure.frozen)
        abstract = abstract_state(config, structure, optimizer, shardings)
        if first:
            state = checkpoints.restore(first, abstract, data)
        else:
            state = initial_state(config, optimizer, start(structure.trained), abstract)
        constants = None
        if config.stage != "xpsr":
            constants = jax.device_put(load_distance(config.loss.metric), sharding.replicated(mesh))
        step = make_step(config, structure, optimizer, abstract, mesh)
        validator = Validator(config, structure, tokenizer=tokenizer, mesh=mesh)

        with (
            Log(
                run,
                first=first,
                steps=config.steps,
                batch_size=config.batch_size,
                wandb=config.wandb,
                record=record,
            ) as log,
            Profiler(run / "profile", first=first, steps=config.profile, say=log.say) as profiler,
            stop_signals() as stopped,
        ):
            log.say(f"{run}: step {first} of {config.steps}, {len(source)} photographs, {mesh.size} devices")
            for change in changed:
                log.say(f"changed since: {change}")
            for done in range(first + 1, config.steps + 1):
                batch = next(data)
                samples = batch.pop("index")
                state, terms = step(state, frozen, constants, sharding.shard_batch(batch, mesh))
                log.add(done, terms, samples)
                profiler.after(done, terms)
                last = done == config.steps
                if done % config.log_every == 0 or last:
                    log.scalars(done)
                if done % config.checkpoint_every == 0 or last or stopped:
                    log.settle()  # What is not a number is never saved.
                    checkpoints.save(done, state, data, record)
                if stopped and not last:
                    checkpoints.wait()
                    log.say(f"stopped at step {done}; the same command goes on from there")
                    return None
                if config.validation.every and done % config.validation.every == 0:
                    with log.paused():
                        log.pictures(done, validator(state.result, frozen, done))
        checkpoints.wait()
        if jax.process_index() == 0:
            plot_losses(run / "metrics.jsonl", run / "losses.png")
        return export(
            run / "model",
            config=config,
            structure=structure,
            trained=state.result,
            frozen=frozen,
            source=source,
            tokenizer=tokenizer,
        )


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or Ctrl-C arrives, so that the step at hand is finished and saved.

    The second of a kind does what it did before: it ends the process at once.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
