"""Measures folders of restored images: batches of one size through the metrics, with files read ahead."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from xpsr_jax.evaluation.frechet import FeatureStatistics, frechet_distance
from xpsr_jax.evaluation.matching import Comparison
from xpsr_jax.evaluation.metrics import Metric, compare, load_metric
from xpsr_jax.evaluation.pixels import Psnr, Ssim
from xpsr_jax.evaluation.protocols import NATIVE, MetricName, Protocol
from xpsr_jax.evaluation.with_pyiqa import InceptionFeatures, NoReferenceMetric
from xpsr_jax.images.reading import read_image

_READERS = 4


@dataclass(frozen=True)
class MethodScores:
    """The scores of one method.

    Attributes:
        images: name of each original -> metric -> score.
        sets: metric -> score of the whole set (FID).
    """

    images: Mapping[str, Mapping[MetricName, float]]
    sets: Mapping[MetricName, float]

    @property
    def mean(self) -> dict[MetricName, float]:
        """The mean of every metric over the images, and the scores of the whole set."""
        columns = list(next(iter(self.images.values())))
        return {name: float(np.mean([row[name] for row in self.images.values()])) for name in columns} | dict(self.sets)

    def as_json(self) -> dict[str, Mapping]:
        """`{"mean": {metric: score}, "images": {name: {metric: score}}}`."""
        return {"mean": self.mean, "images": {name: dict(row) for name, row in self.images.items()}}


@dataclass(frozen=True)
class _Loaded:
    comparisons: Sequence[Comparison]
    reference: UInt8[np.ndarray, "b h w 3"]
    restored: UInt8[np.ndarray, "k b h w 3"]


def score(
    comparisons: Sequence[Comparison],
    methods: Sequence[str],
    protocol: Protocol,
    metrics: Sequence[MetricName],
    *,
    batch_size: int,
    on_images: Callable[[int], object] = lambda count: None,
) -> dict[str, MethodScores]:
    """Every metric of every method on every image.

    Args:
        metrics: which; each is loaded before the first image is read.
        batch_size: images that are in memory, and given to the devices, at once.
        on_images: is called with the number of further originals that are done.

    Raises:
        UserError: weights or a package are missing, or an image cannot be decoded.
    """
    native = [name for name in metrics if name in NATIVE]
    measure_native = _native(native, protocol)
    judges = {name: NoReferenceMetric(name) for name in metrics if name not in NATIVE and name != "fid"}
    inception = InceptionFeatures() if "fid" in metrics else None

    rows: list[dict[str, dict[MetricName, float]]] = [{} for _ in methods]
    statistics: list[FeatureStatistics | None] = [None] * (len(methods) + 1)
    for batch in _batches(comparisons, batch_size):
        values = dict(zip(native, measure_native(batch), strict=True))
        for name, judge in judges.items():
            values[name] = np.stack([judge(images) for images in batch.restored])
        for k in range(len(methods)):
            for i, comparison in enumerate(batch.comparisons):
                rows[k][comparison.name] = {name: float(values[name][k][i]) for name in metrics if name != "fid"}
        if inception is not None:
            for k, images in enumerate([*batch.restored, batch.reference]):
                new, old = FeatureStatistics.of(inception(list(images))), statistics[k]
                statistics[k] = new if old is None else old.merge(new)
        on_images(len(batch.comparisons))

    order = [comparison.name for comparison in comparisons]  # batches were of one size each
    results = {}
    for method, row, of_method in zip(methods, rows, statistics, strict=False):
        sets: dict[MetricName, float] = {}
        if of_method is not None and statistics[-1] is not None:
            sets["fid"] = frechet_distance(of_method, statistics[-1])
        results[method] = MethodScores({name: row[name] for name in order}, sets)
    return results


def default_batch_size() -> int:
    """Images of 512 x 512 at once: one for each CPU device, eight for each accelerator."""
    return jax.local_device_count() * (1 if jax.default_backend() == "cpu" else 8)


def _native(names: Sequence[MetricName], protocol: Protocol) -> Callable[[_Loaded], list[Float[np.ndarray, "k b"]]]:
    """The metrics of JAX, on whole images or without the protocol's border."""
    border = protocol.border
    with_border: dict[MetricName, Metric] = {}
    cropped: dict[MetricName, Metric] = {}
    for name in names:
        if name == "psnr":
            cropped[name] = Psnr(protocol.channels)
        elif name == "ssim":
            cropped[name] = Ssim(protocol.channels)
        elif name == "dists":
            with_border[name] = load_metric("dists")
        else:
            with_border[name] = load_metric("lpips_vgg" if name == "lpips_vgg" else "lpips_alex")

    def measure(batch: _Loaded) -> list[np.ndarray]:
        values: dict[MetricName, np.ndarray] = {}
        for group, crop in ((cropped, border), (with_border, 0)):
            if group:
                inner = slice(crop, -crop or None)
                restored, reference = (jnp.asarray(i[..., inner, inner, :]) for i in (batch.restored, batch.reference))
                values |= dict(zip(group, np.asarray(compare(tuple(group.values()), restored, reference)), strict=True))
        return [values[name] for name in names]

    return measure


def _batches(comparisons: Sequence[Comparison], batch_size: int) -> Iterator[_Loaded]:
    """Of one size each; while one is measured, the next is read."""
    by_size: dict[tuple[int, int], list[Comparison]] = {}
    for comparison in comparisons:
        by_size.setdefault(comparison.size, []).append(comparison)
    pieces = [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(_READERS) as readers:
        pending = ahead.submit(_load, pieces[0], readers)
        for following in [*pieces[1:], None]:
            batch = pending.result()
            if following is not None:
                pending = ahead.submit(_load, following, readers)
            yield batch


def _load(comparisons: Sequence[Comparison], readers: ThreadPoolExecutor) -> _Loaded:
    paths = [comparison.reference for comparison in comparisons]
    paths += [comparison.restored[k] for k in range(len(comparisons[0].restored)) for comparison in comparisons]
    images = np.stack(list(readers.map(read_image, paths)))
    images = images.reshape(-1, len(comparisons), *images.shape[1:])
    return _Loaded(comparisons, images[0], images[1:])
