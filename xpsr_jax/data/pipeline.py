"""From photographs to training batches, with grain.

An example is a pure function of (seed, position in the endless stream), whatever the number of processes, threads or
restarts.
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

    A batch is a dict, b = batch_size / process_count, s = crop_size:
      hr         float32 (b, s, s, 3) in [-1, 1], in steps of 1/255 of [0, 1] as an image file has them: the target
      lr         float32 (b, s, s, 3) in [0, 1], in the same steps: LR, upsampled bicubically to the HR size
      high_ids, low_ids   int32 (b, 77): the captions' CLIP tokens; with `config.embeddings` in their place
      high_embedding, low_embedding   float32 (b, 77, d): what the text encoder made of them
      small      float32 (b, s/4, s/4, 3) in [0, 1] and clean, bool (b,): where the model has a first stage whose
        pictures are to be computed, LR at its own size, and whether `lr` is HR itself
      key        uint32 (b,): a seed for this sample's noise in training
      index      int64 (b,): the sample's position in the stream

    Args:
      tokenizer: a transformers CLIPTokenizer; not needed with `config.degrade=False`.
      first_stage: the model has one.
      batch_size: of all processes together. Put together in the order of processes, their batches are those of one
        process.
      epochs: how often the source is gone through, each time in another order. A last incomplete batch is left out.
    """
    _check(config, seed=seed, batch_size=batch_size, process_index=process_index, process_count=process_count)
    if epochs is not None and len(source) * epochs < batch_size:
        raise UserError(f"{len(source)} images, {epochs} times, do not fill one batch of {batch_size}.")
    samples = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        samples = samples.shuffle()
    embeddings = None if config.embeddings is None else TextEmbeddings(config.embeddings)
    examples = samples.repeat(epochs).map_with_index(_MakeExample(config, tokenizer, embeddings, first_stage, seed))
    # Cut first, then shared out: each process has a contiguous part of every global batch. All have the same number of
    # parts: a process with one more would wait for the others for ever.
    parts = examples.batch(batch_size // process_count, drop_remainder=True)
    batches = parts[process_index : len(examples) // batch_size * process_count : process_count]
    return Batches(batches, workers=config.workers, threads=config.threads, prefetch=config.prefetch)


@dataclass(frozen=True)
class _MakeExample:
    """`make_example` of the n-th sample; unlike a lambda it can be sent to worker processes."""

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
    """The batches, made by worker processes or by threads of this one.

    Args:
      batches: by number.
      workers, threads, prefetch: as in `DataConfig`.
    """

    def __init__(self, batches: grain.MapDataset[Example], *, workers: int, threads: int, prefetch: int):
        super().__init__()
        self._batches = batches
        self._workers, self._threads, self._prefetch = workers, threads, prefetch

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(self)

    def since(self, position: int) -> grain.DatasetIterator[Example]:
        """The batches from that one on."""
        rest = self._batches[position:]
        if not self._workers:
            worker_process.tune()
            return iter(rest.to_iter_dataset(grain.ReadOptions(self._threads, max(self._threads, self._prefetch))))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain asks absl for settings of its own, and this is no absl program.
        options = grain.MultiprocessingOptions(self._workers, max(1, self._prefetch // self._workers))
        in_worker = rest.to_iter_dataset(grain.ReadOptions(1, 1))
        return iter(in_worker.mp_prefetch(options, worker_init_fn=worker_process.begin_worker))


class BatchIterator(grain.DatasetIterator[Example]):
    """An iterator that orbax can save, and whose state is its position: the number of batches taken.

    Grain's own state also tells how many workers there are and where each of them is. A position is the same for every
    process, and any number of workers can go on from it.
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
        """Goes to a position of `get_state`; batches made in advance are dropped."""
        self.close()
        self._closed = False
        self._position = state["next_index"]

    def start_prefetch(self) -> None:
        """Begins to make batches in the background."""
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
        raise UserError(f"The data seed must lie in 0 to 2^32 - 1, got {seed}.")
    if not 0 <= process_index < process_count:
        raise ValueError(f"There is no process {process_index} of {process_count}.")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"The batch size {batch_size} must be a positive multiple of the {process_count} processes.")
    upscale = config.degradation.upscale
    if config.crop_size < 1 or (config.degrade and config.crop_size % upscale):
        raise UserError(f"The crop size {config.crop_size} must be a positive multiple of upscale={upscale}.")
    low, high = config.crop_scale
    if not 0 < low <= high:
        raise UserError(f"crop_scale must be a rising range of positive factors, got {config.crop_scale}.")
    if config.negative_target_probability > 0 and not config.negative_words:
        raise UserError("negative_target_probability is set but negative_words is empty.")
    if config.embeddings is not None and (config.low_caption_from == "drawn" or config.negative_target_probability > 0):
        raise UserError(
            "data.embeddings holds the captions of files alone. Set data.low_caption_from to file, and "
            "data.negative_target_probability to 0; or train without it."
        )
