"""Makes training batches from photographs, with grain.

An example is a pure function of the seed and its position in the endless stream. The number of processes, threads or
restarts does not change it.
"""

from dataclasses import dataclass

import grain
from absl import flags

from xpsr_jax.data import worker_process
from xpsr_jax.data.config import DataConfig
from xpsr_jax.data.embeddings import TextEmbeddings
from xpsr_jax.data.examples import Example, Tokenizer, make_example
from xpsr_jax.data.sample_sources import SampleSource
from xpsr_jax.data.samples import Sample
from xpsr_jax.errors import UserError


def make_pipeline(
    source: SampleSource,
    config: DataConfig,
    *,
    tokenizer: Tokenizer | None = None,
    first_stage: bool = False,
    seed: int = 0,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
    epochs: int | None = None,
) -> "Batches":
    """Batches for this process, endless unless `epochs` is given.

    A batch is a dict, where b = batch_size / process_count and s = crop_size:
      hr         float32 (b, s, s, 3) in [-1, 1]: the target, rounded to 8 bits
      lr         float32 (b, s, s, 3) in [0, 1]: LR, upsampled bicubically to the HR size, rounded to 8 bits
      high_ids, low_ids   int32 (b, 77): the captions' CLIP tokens. With `config.embeddings` they are replaced by
        high_embedding, low_embedding, float32 (b, 77, d): the text encoder's outputs
      small, clean   float32 (b, s/4, s/4, 3) in [0, 1] and bool (b,): LR at its own size, and whether `lr` is HR
        itself. Only if training computes the pictures of a first stage
      key        uint32 (b,): a seed for this sample's noise in training
      index      int64 (b,): the sample's position in the stream

    Args:
      tokenizer: a transformers CLIPTokenizer; not needed with `config.degrade=False`.
      first_stage: whether the model has a first stage.
      batch_size: the size for all processes together. The processes' batches, joined in their order, are the batch of a
        single process.
      epochs: the number of passes over the source, each in another order. An incomplete last batch is dropped.
    """
    _check(config, seed=seed, batch_size=batch_size, process_index=process_index, process_count=process_count)
    if epochs is not None and len(source) * epochs < batch_size:
        raise UserError(f"{len(source)} images, {epochs} times, do not fill one batch of {batch_size}.")
    samples = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        samples = samples.shuffle()
    embeddings = None if config.embeddings is None else TextEmbeddings(config.embeddings)
    examples = samples.repeat(epochs).map_with_index(_MakeExample(config, tokenizer, embeddings, first_stage, seed))
    # Each process gets a contiguous part of every global batch. All get the same number of parts, because a process
    # with one more would wait for the others forever.
    parts = examples.batch(batch_size // process_count, drop_remainder=True)
    batches = parts[process_index : len(examples) // batch_size * process_count : process_count]
    return Batches(batches, workers=config.workers, threads=config.threads, prefetch=config.prefetch)


@dataclass(frozen=True)
class _MakeExample:
    """`make_example` for the n-th sample. Unlike a lambda it can be sent to worker processes."""

    config: DataConfig
    tokenizer: Tokenizer | None
    embeddings: TextEmbeddings | None
    first_stage: bool
    seed: int

    def __call__(self, index: int, sample: Sample) -> Example:
        return make_example(
            sample,
            self.config,
            tokenizer=self.tokenizer,
            embeddings=self.embeddings,
            first_stage=self.first_stage,
            seed=self.seed,
            index=index,
        )


class Batches(grain.IterDataset[Example]):
    """The batches, made by worker processes or by threads of this process.

    Args:
      batches: the batches by number.
      workers, threads, prefetch: as in `DataConfig`.
    """

    def __init__(self, batches: grain.MapDataset[Example], *, workers: int, threads: int, prefetch: int):
        super().__init__()
        self._batches = batches
        self._workers, self._threads, self._prefetch = workers, threads, prefetch

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(self)

    def since(self, position: int) -> grain.DatasetIterator[Example]:
        """An iterator over the batches from this position on."""
        rest = self._batches[position:]
        if not self._workers:
            worker_process.tune()
            return iter(rest.to_iter_dataset(grain.ReadOptions(self._threads, max(self._threads, self._prefetch))))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its settings from absl, but this is not an absl program.
        options = grain.MultiprocessingOptions(self._workers, max(1, self._prefetch // self._workers))
        in_worker = rest.to_iter_dataset(grain.ReadOptions(1, 1))
        return iter(in_worker.mp_prefetch(options, worker_init_fn=worker_process.begin_worker))


class BatchIterator(grain.DatasetIterator[Example]):
    """An iterator that orbax can save. Its state is its position: the number of batches taken.

    Grain's own state also contains the number of workers and the position of each. The position here is the same in
    every process, and any number of workers can resume from it.
    """

    def __init__(self, batches: Batches):
        super().__init__()
        self._batches = batches
        self._position = 0
        self._running: grain.DatasetIterator[Example] | None = None

    def __next__(self) -> Example:
        self.start_prefetch()
        assert self._running is not None
        batch: Example = next(self._running)
        self._position += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position as JSON: {"next_index": batches taken}."""
        return {"next_index": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position from `get_state`. Batches made in advance are dropped."""
        self.close()
        self._closed = False
        self._position = state["next_index"]

    def start_prefetch(self) -> None:
        """Starts to make batches in the background."""
        if self._closed:
            raise ValueError("this iterator of batches is closed")
        if self._running is None:
            self._running = self._batches.since(self._position)
            self._running.start_prefetch()

    def close(self) -> None:
        """Ends threads and worker processes."""
        if self._running is not None:
            self._running.close()
        self._running, self._closed = None, True


def _check(config: DataConfig, *, seed: int, batch_size: int, process_index: int, process_count: int) -> None:
    if not 0 <= seed < 2**32:
        raise UserError(f"The data seed must be between 0 and 2^32 - 1, got {seed}.")
    if not 0 <= process_index < process_count:
        raise ValueError(f"There is no process {process_index} of {process_count}.")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"The batch size {batch_size} must be a positive multiple of the {process_count} processes.")
    upscale = config.degradation.upscale
    if config.crop_size < 1 or (config.degrade and config.crop_size % upscale):
        raise UserError(f"The crop size {config.crop_size} must be a positive multiple of upscale={upscale}.")
    low, high = config.crop_scale
    if not 0 < low <= high:
        raise UserError(f"crop_scale must be two positive factors, the smaller one first, got {config.crop_scale}.")
    if config.negative_target_probability > 0 and not config.negative_words:
        raise UserError("negative_target_probability is set but negative_words is empty; name some words.")
    if config.embeddings is not None and (config.low_caption_from == "drawn" or config.negative_target_probability > 0):
        raise UserError(
            "data.embeddings has only the captions of files. Set data.low_caption_from to file and "
            "data.negative_target_probability to 0, or train without data.embeddings."
        )
