"""A training run, from the config to the exported model. A stopped run is resumed."""

import collections
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
from jax.experimental import multihost_utils

from xpsr_jax import distributed, sharding
from xpsr_jax.buckets.mirror import Mirror, mirrored
from xpsr_jax.buckets.paths import BucketPath, with_paths
from xpsr_jax.config import Config, Validation
from xpsr_jax.data.pipeline import make_pipeline
from xpsr_jax.errors import UserError
from xpsr_jax.files import check_writable, remove_tree
from xpsr_jax.json_files import write_json
from xpsr_jax.locks import locked_folder
from xpsr_jax.training import fingerprints, resume
from xpsr_jax.training.base_model import with_commits
from xpsr_jax.training.checkpoints import Checkpoints, is_full
from xpsr_jax.training.export import export, tokenizer_of
from xpsr_jax.training.first_stage import check_stored_pictures
from xpsr_jax.training.images import open_images
from xpsr_jax.training.log import Log, NotANumber, check_wandb
from xpsr_jax.training.parameters import initial_parameters
from xpsr_jax.training.plan import loss_constants, make_plan
from xpsr_jax.training.plot import plot_metrics
from xpsr_jax.training.profiling import Profiler
from xpsr_jax.training.state import TrainState, initial_state, learning_rate
from xpsr_jax.training.validation import Validator


def train(config: Config) -> Path | None:
    """Runs or resumes the training in `config.run_folder`. Exports the model after the last step.

    The run folder's README.md describes its contents. With several processes (`distributed.start`) each process must
    call this, and all must see the same folder.

    Returns:
      The exported model folder; None if the run was stopped early (SIGTERM, Ctrl-C). Its state is then saved.

    Raises:
      UserError: bad settings or files (nothing is written then), a run folder that another training writes to, a full
        disk, or a loss that is NaN or infinite.
    """
    config = with_paths(config)
    run = config.run_folder
    check_run(run)
    check_wandb(config.wandb)
    config = with_commits(config)
    mesh = sharding.make_mesh(config.mesh)
    plan = make_plan(config, mesh)
    structure = plan.structure
    tokenizer = tokenizer_of(config.networks)
    source = open_images(config.images)
    record = resume.record(config, photographs=len(source))
    data = iter(
        make_pipeline(
            source,
            config.data,
            tokenizer=tokenizer,
            first_stage=structure.first_stage is not None,
            seed=config.seed,
            batch_size=config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    )
    check_writable(run)
    with (
        contextlib.closing(data),
        locked_run(run),
        Checkpoints(run / "checkpoints", keep=config.keep) as checkpoints,
        _full_disk(run),
        # Files in a bucket cannot be appended to, so the log is written locally and copied.
        mirrored(run, begun_with=("log.txt", "metrics.jsonl")) as mirror,
    ):
        distributed.by_first(checkpoints.check_readable)
        resumed = resume.newest(checkpoints, record, plan.state, data)
        first = resumed.step if resumed else 0
        base: dict[str, str] = {}
        parameters = initial_parameters(
            structure,
            structure.frozen if resumed else structure.frozen | structure.trained,
            plan.shardings,
            seed=config.seed,
            frozen_dtype=config.precision.frozen_dtype,
            fingerprints=base if distributed.is_first() else None,
        )
        if distributed.is_first():
            base |= fingerprints.stored_first_stage(structure)
        record["base"] = fingerprints.from_first_process(base)
        fingerprints.check_embeddings(config, structure, record["base"])
        check_stored_pictures(config, structure, record["base"])
        if resumed:
            resume.check_base(resumed.record, record)
            state = resumed.state
        else:
            trained = {path: parameters[path] for path in structure.trained}
            state = initial_state(config, plan.optimizer, trained, plan.state)
        frozen = {path: parameters[path] for path in structure.frozen}
        constants = jax.device_put(loss_constants(config), sharding.replicated(mesh))
        validator = Validator(config, structure, tokenizer=tokenizer, mesh=mesh)
        if distributed.is_first():
            write_json(record, run / "config.json")

        with (
            Log(
                mirror.place,
                first=first,
                unlogged=resumed.log if resumed else None,
                steps=config.steps,
                batch_size=config.batch_size,
                wandb=config.wandb,
                record=record,
            ) as log,
            Profiler(mirror.place / "profile", first=first, steps=config.profile, say=log.say) as profiler,
            stop_signals() as stopped,
        ):
            log.say(f"{run}: step {first} of {config.steps}, {len(source)} photographs, {_devices(mesh)}")
            for note in resumed.notes if resumed else ():
                log.say(note)
            # The data's position before each of the last batches. The host learns of a failed step one step late.
            positions: collections.deque[tuple[int, Any]] = collections.deque(maxlen=3)
            rate = learning_rate(config.optimizer, config.steps)

            def validate(done: int) -> None:
                with log.paused():
                    log.validation(done, *validator(state.result, frozen, done))

            if first and _is_due(config.validation, first) and log.lacks_validation(first):
                validate(first)
            try:
                for done in range(first + 1, config.steps + 1):
                    positions.append((done, data.get_state()))
                    batch = next(data)
                    samples = batch.pop("index")
                    state, terms = plan.step(state, frozen, constants, sharding.shard_batch(batch, mesh))
                    log.add(done, terms, samples)
                    profiler.after(done, terms)
                    checkpoints.check()
                    last, stop = done == config.steps, stopped(done)
                    if done % config.log_every == 0 or last:
                        log.scalars(done, learning_rate=float(rate(done - 1)))
                    if done % config.checkpoint_every == 0 or last or stop:
                        log.settle()  # A state after NaN is never saved.
                        _push_log(log, mirror)  # A run that resumes from this checkpoint needs the earlier lines.
                        checkpoints.save(done, state, data, record, log.unlogged)
                    if stop and not last:
                        checkpoints.wait()
                        log.say(f"stopped at step {done}; the same command resumes from there")
                        return None
                    if _is_due(config.validation, done):
                        validate(done)
                    if mirror.is_due:
                        _push_log(log, mirror)
            except NotANumber as failure:
                data.set_state(dict(positions)[failure.step])
                folder = _save_failed(run, failure.step, state.before_failure, data, record)
                seen = ", ".join(map(str, sorted(distributed.from_all(failure.samples))))
                raise UserError(
                    f"{failure} (samples {seen}). {folder} is a checkpoint of the state before that step; its next "
                    "batch is the one that failed. The last checkpoint of the run is kept. Lower the learning rate "
                    "(--optimizer.learning-rate), then start the same command again"
                ) from failure
        checkpoints.wait()
        if distributed.is_first():
            plot_metrics(mirror.place / "metrics.jsonl", mirror.place / "losses.png")
        mirror.push()
        return export(
            run / "model",
            config=config,
            structure=structure,
            trained=state.result,
            frozen=frozen,
            source=source,
            tokenizer=tokenizer,
        )


def check_run(run: Path) -> None:
    """Raises UserError for a folder that cannot hold a run."""
    if isinstance(run, BucketPath) and run.scheme == "s3":
        raise UserError(
            f"{run}: Orbax writes checkpoints to disks and to gs:// only; name a folder on a disk or in gs:// with "
            "--run, and copy it afterwards"
        )


def _push_log(log: Log, mirror: Mirror) -> None:
    """Copies the log so far to the bucket. A failed copy is reported and does not end the training."""
    if mirror.follows:
        log.flush()
        try:
            mirror.push()
        except UserError as error:
            log.say(f"{error}; it will be tried again later")


def _is_due(validation: Validation, step: int) -> bool:
    return validation.every > 0 and step % validation.every == 0


def _devices(mesh: jax.sharding.Mesh) -> str:
    devices = f"{mesh.size} device{'' if mesh.size == 1 else 's'}"
    return devices + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")


def _save_failed(run: Path, step: int, before: TrainState, data: grain.DatasetIterator, record: dict[str, Any]) -> Path:
    """Saves a checkpoint from which the failed step can be repeated. Replaces the checkpoint of an older failure."""
    folder = run / "failed"
    if distributed.is_first():
        remove_tree(folder)
    distributed.wait_for_all("an older failure is removed")
    with Checkpoints(folder, keep=2) as failed:
        failed.save(step - 1, before, data, record, {"sums": {}, "steps": 0})
    return folder / str(step - 1)


@contextlib.contextmanager
def locked_run(run: Path) -> Iterator[None]:
    """Locks the run's folder against other trainings. With several processes, the first one holds the lock for all.

    Raises UserError in all processes if another training has the lock.
    """
    with contextlib.ExitStack() as stack:
        distributed.by_first(lambda: stack.enter_context(locked_folder(run)))
        yield


@contextlib.contextmanager
def _full_disk(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"{run}: {error.strerror}; the last checkpoint is kept, free some space and start the same command again"
        ) from error


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Yields a function that says, after each step, whether to save and stop there: SIGTERM or Ctrl-C has arrived.

    A second signal of the same kind is handled as it was before this context: it ends the process immediately. With
    several processes, all stop at the same step, whichever of them got the signal (JAX's preemption service).
    """
    if jax.process_count() > 1:
        # The preemption service handles SIGTERM itself.
        with _handler(signal.SIGINT, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    with contextlib.ExitStack() as handlers:
        for number in (signal.SIGTERM, signal.SIGINT):
            handlers.enter_context(_handler(number, lambda: received.append(1)))
        yield lambda step: bool(received)


@contextlib.contextmanager
def _handler(number: signal.Signals, act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` when the signal arrives for the first time; later ones are handled as before."""
    before = signal.getsignal(number)

    def receive(*_: object) -> None:
        signal.signal(number, before)
        act()

    signal.signal(number, receive)
    try:
        yield
    finally:
        signal.signal(number, before)
