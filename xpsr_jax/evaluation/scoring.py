"""Measures folders of restored images, in batches of images of equal size. Files are read ahead."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.frechet import FeatureStatistics, frechet_distance
from xpsr_jax.evaluation.matching import Comparison
from xpsr_jax.evaluation.metrics import Metric, compare, load_metric
from xpsr_jax.evaluation.pixels import Psnr, Ssim
from xpsr_jax.evaluation.protocols import NATIVE, MetricName, Protocol
from xpsr_jax.evaluation.with_pyiqa import InceptionFeatures, NoReferenceMetric
from xpsr_jax.images.alpha import on_white
from xpsr_jax.images.reading import read_picture

_READERS = 4


@dataclass(frozen=True)
class MethodScores:
    """The scores of one method.

    Attributes:
        images: scores of each image: name of the original -> metric -> score.
        sets: scores of the whole set (FID): metric -> score.
    """

    images: Mapping[str, Mapping[MetricName, float]]
    sets: Mapping[MetricName, float]

    @property
    def mean(self) -> dict[MetricName, float]:
        """The mean of every metric over the images, plus the scores of the whole set."""
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


@dataclass
class ImageReport:
    """How to handle unreadable images, and facts about the images that were read.

    Attributes:
        on_error: "stop": an image that cannot be decoded ends the work. "skip": its original is skipped for all
            methods.
        failed: the reason why an original was skipped, by its name.
        transparent: number of originals that have transparent pixels, in themselves or in a restored image.
    """

    on_error: Literal["stop", "skip"] = "stop"
    failed: dict[str, str] = field(default_factory=dict)
    transparent: int = 0


def score(
    comparisons: Sequence[Comparison],
    methods: Sequence[str],
    protocol: Protocol,
    metrics: Sequence[MetricName],
    *,
    batch_size: int,
    on_images: Callable[[Sequence[str]], object] = lambda names: None,
    report: ImageReport | None = None,
) -> dict[str, MethodScores]:
    """Measures every metric of every method on every image. Transparent images are put on a white background.

    Args:
        comparisons: the images.
        methods: names of the methods, in the order of `Comparison.restored`.
        protocol: the protocol.
        metrics: the metrics. All are loaded before the first image is read.
        batch_size: originals that are in memory, and on the devices, at the same time.
        on_images: called with the names of the originals that were done since the last call.
        report: how to handle images that cannot be decoded. It also collects facts about the images. None: the first
            such image ends the work.

    Raises:
        UserError: weights or a package are missing, or an image cannot be decoded, or all images were skipped.
    """
    native = [name for name in metrics if name in NATIVE]
    measure_native = _native(native, protocol)
    judges = {name: NoReferenceMetric(name) for name in metrics if name not in NATIVE and name != "fid"}
    inception = InceptionFeatures() if "fid" in metrics else None

    rows: list[dict[str, dict[MetricName, float]]] = [{} for _ in methods]
    statistics: list[FeatureStatistics | None] = [None] * (len(methods) + 1)
    report = report or ImageReport()
    for batch in _batches(comparisons, batch_size, report):
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
        on_images([comparison.name for comparison in batch.comparisons])

    # Batches were grouped by size, so restore the original order.
    order = [comparison.name for comparison in comparisons if comparison.name not in report.failed]
    if len(order) < (2 if inception is not None else 1):
        raise UserError(f"nothing was measured: {next(iter(report.failed.values()))}")
    results = {}
    for method, row, of_method in zip(methods, rows, statistics, strict=False):
        sets: dict[MetricName, float] = {}
        if of_method is not None and statistics[-1] is not None:
            sets["fid"] = frechet_distance(of_method, statistics[-1])
        results[method] = MethodScores({name: row[name] for name in order}, sets)
    return results


def default_batch_size() -> int:
    """The batch size for images of 512 x 512: one per CPU device, eight per accelerator."""
    return jax.local_device_count() * (1 if jax.default_backend() == "cpu" else 8)


def _native(names: Sequence[MetricName], protocol: Protocol) -> Callable[[_Loaded], list[Float[np.ndarray, "k b"]]]:
    """Returns a function that measures the JAX metrics, on whole images or without the protocol's border."""
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


def _batches(comparisons: Sequence[Comparison], batch_size: int, report: ImageReport) -> Iterator[_Loaded]:
    """Yields batches of images of equal size. While one batch is measured, the next is read."""
    by_size: dict[tuple[int, int], list[Comparison]] = {}
    for comparison in comparisons:
        by_size.setdefault(comparison.size, []).append(comparison)
    pieces = [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(_READERS) as readers:
        pending = ahead.submit(_load, pieces[0], readers, report)
        for following in [*pieces[1:], None]:
            batch = pending.result()
            if following is not None:
                pending = ahead.submit(_load, following, readers, report)
            if batch is not None:
                yield batch


def _load(comparisons: Sequence[Comparison], readers: ThreadPoolExecutor, report: ImageReport) -> _Loaded | None:
    """Loads the images of all comparisons that can be read. None if no comparison can be read."""
    pending = [
        [readers.submit(_seen, path, each.size) for path in (each.reference, *each.restored)] for each in comparisons
    ]
    loaded, read = [], []
    for comparison, futures in zip(comparisons, pending, strict=True):
        try:
            images, transparent = zip(*(future.result() for future in futures), strict=True)
        except UserError as error:
            if report.on_error == "stop":
                raise
            report.failed[comparison.name] = str(error)
            continue
        report.transparent += any(transparent)
        loaded.append(comparison)
        read.append(images)
    if not loaded:
        return None
    reference, *restored = (np.stack(images) for images in zip(*read, strict=True))
    return _Loaded(loaded, reference, np.stack(restored))


def _seen(path: Path, size: tuple[int, int]) -> tuple[UInt8[np.ndarray, "h w 3"], bool]:
    """The part of an image that is compared, on a white background, and whether the image has transparent pixels."""
    picture = read_picture(path)
    height, width = size
    return on_white(picture)[:height, :width], picture.alpha is not None
