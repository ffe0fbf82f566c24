r"""Score a stored prediction against the truth, block by block, at any size.

Annotators differ by a voxel or two where a membrane belongs, so a score is also given without the voxels near the
border of the truth. A band of width d leaves out, on both sides, the voxels whose Euclidean distance to the nearest
voxel of the other true class is at most d (centre to centre, in units of the smallest voxel spacing):

    truth             0  0  0  0 | 1  1  1  1
    distance          4  3  2  1 | 1  2  3  4
    left out, d = 2         x  x | x  x

In 3D a voxel is also left out when the other class lies above or below it; the in-plane variant asks its own slice
alone. Ignored voxels (255) are no class: they are not counted, and nothing is near them.

Scores of probabilities (ranking, calibration, the best threshold) all come from one log-odds histogram, so a map of
any size costs one pass. Log-odds are known to 0.005, and those beyond ±20 count as ±20
(`mitoseg.metrics.histogram`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import edt
import numpy as np
import numpy.typing as npt
from scipy.special import expit

from mitoseg.control_groups import usable_cores
from mitoseg.engines import Engine, LocalEngine, one_at_a_time
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.geometry import slabs as cut
from mitoseg.metrics import (
    BINS,
    IGNORE,
    Counts,
    Curve,
    Reliability,
    average_precision,
    best_threshold,
    bootstrap_intervals,
    brier_score,
    count,
    curve,
    logit_histogram,
    negative_log_likelihood,
    precision_recall,
    reliability_bins,
    scores,
)
from mitoseg.metrics.histogram import Ints
from mitoseg.metrics.intervals import LEVEL
from mitoseg.metrics.reliability import AS_STORED
from mitoseg.progress import progress as show_progress
from mitoseg.volumes.base import Array, Volume
from mitoseg.volumes.opening import swapped
from mitoseg.volumes.predicted import Decision, decide

BANDS = tuple(range(1, 11))
"""Widths of the boundary bands, in voxels of the smallest spacing."""

SLABS = 8
"""Equal parts of the crop along z; their spread makes the intervals."""


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        resamples: Number of draws; 0 for no intervals.
        seed: Of the draws.

    Raises:
        UserError: One of them is negative or no whole number.
    """

    resamples: int = 2000
    seed: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UserError(f"bootstrap: {name} is not a whole number", value, "give 0 or more")

    @classmethod
    def from_report(cls, result: Mapping[str, object]) -> Bootstrap:
        """How the intervals of a report were made."""
        made: Mapping[str, int] = result["bootstrap"]  # type: ignore[assignment]
        return cls(made["resamples"], made["seed"])


DRAWS = Bootstrap()
"""Of slabs, for the intervals."""

BLOCK_VOXELS = 2**25
"""Voxels held at once, the halo included, unless memory is short."""

VOXEL_BYTES = 24
"""Of each of them."""

_PLANE = 2048  # longest side, in y and x, of what is held at once

_SMALLEST = 64  # below it there would be more halo than block


def evaluate(
    prediction: Volume,
    truth: Volume,
    *,
    threshold: float | None = None,
    crop: Box | None = None,
    bands: Sequence[float] = BANDS,
    kind: str | None = None,
    voxel_size: Sequence[float] | None = None,
    slabs: int = SLABS,
    bootstrap: Bootstrap = DRAWS,
    depth: int | None = None,
    progress: bool = False,
    engine: Engine | None = None,
) -> Evaluation:
    """Score two volumes; all scores are pooled over voxels.

    Args:
        prediction: Probabilities, a mask or instances; see `mitoseg.volumes.predicted.decide`.
        truth: Mapped labels: 0 background, 1 foreground, 255 ignored.
        threshold: Overrides the one in the prediction's metadata.
        crop: The part that is scored; the truth beyond it still tells what is near a border.
        bands: Widths of the boundary bands, in voxels of the smallest spacing; none for no such scores.
        kind: Overrides what the prediction's metadata says it is.
        voxel_size: (z, y, x), any unit; None: the truth's, else the prediction's, else taken as cubic.
        slabs: Equal parts along z whose spread makes the intervals; at most as many as the crop has slices.
        bootstrap: How the intervals are made.
        depth: Slices held at once; None: as many as the engine's memory allows. It does not change the result.
        progress: Show a bar on stderr.
        engine: Started, counts the blocks; its workers must see the files. None: this process.

    Returns:
        The keys of `mitoseg.metrics.scores`; ``interval``, by score the ends of its 95 % interval over the slabs
        (`mitoseg.metrics.bootstrap_intervals`); ``threshold``, ``threshold_source``, ``kind``, ``crop``, ``shape``,
        ``voxel_size`` (None: taken as cubic), ``bootstrap``, ``counts``, ``slab_counts``, and ``boundary``: for each
        band and each of `DIMS`, ``distance``, ``dims``, the scores of what is left, its ``counts``, and the shares
        ``left_out_foreground`` and ``left_out_background``. For probabilities also the keys of
        `mitoseg.evaluation.score.probability_scores`. A score without a denominator is NaN.

    Raises:
        UserError: The shapes differ, the crop leaves the volume, or an argument is out of range.
    """
    crop = _check(prediction, truth, crop, bands, slabs)
    bands = sorted(set(bands))
    decision = decide(prediction, threshold, kind)
    spacing = voxel_size or truth.voxel_size or prediction.voxel_size
    known = None if spacing is None else [float(s) for s in spacing]
    by_slice = [Counts()] * crop.shape[0]
    near = {dims: [Counts()] * len(bands) for dims in DIMS}
    histogram = np.zeros((2, BINS), np.int64)
    margin = halo(bands, known or (1, 1, 1))
    engine = engine or LocalEngine()
    blocks = list(_blocks(crop, margin, depth, min(BLOCK_VOXELS, engine.item_bytes / VOXEL_BYTES)))
    with show_progress("scoring", len(blocks), unit="blocks", show=progress) as task:

        def add(block: Box, found: BlockCounts) -> None:
            nonlocal histogram
            for i, counts_yx in enumerate(found.by_slice, block.start[0] - crop.start[0]):
                by_slice[i] += counts_yx
            for dims, counts in found.near.items():
                near[dims] = [x + y for x, y in zip(near[dims], counts, strict=True)]
            histogram = histogram + found.histogram
            task.advance()

        function = CountBlock(prediction, truth, decision, bands, known or (1, 1, 1))
        engine.map(function, blocks, add)
    tally = Tally(bands, _shares(by_slice, slabs), near, histogram if decision.kind == "probability" else None)
    about = {"kind": decision.kind, "crop": str(crop), "shape": list(truth.shape), "voxel_size": known}
    thresholds = {"threshold": decision.threshold, "threshold_source": decision.source}
    return tally.report(bootstrap, thresholds | about)


def pool_evaluations(results: Sequence[Mapping[str, object]]) -> Evaluation:
    """One result for several volumes: their voxels pooled, their slabs side by side.

    Args:
        results: What `evaluate` gave for each, with the same bands. Read back from ``metrics.json`` they lack the
            histogram, and the scores of probabilities are left out.

    Returns:
        `evaluate`'s keys; where the volumes differ in threshold, crop, shape and the like, a list of them all.

    Raises:
        ValueError: There is none, or their bands differ.
    """
    if not results:
        raise ValueError("no evaluation to pool")
    tally = Tally.from_report(results[0])
    for result in results[1:]:
        tally += Tally.from_report(result)
    about: dict[str, object] = {}
    for key in ("threshold", "threshold_source", "kind", "crop", "shape", "voxel_size"):
        values = [result[key] for result in results]
        about[key] = values[0] if all(v == values[0] for v in values) else values
    return tally.report(Bootstrap.from_report(results[0]), about)


def check_shapes(**volumes: Volume) -> None:
    """Refuse volumes of different shapes.

    Raises:
        UserError: With the shape (z, y, x) of each by its keyword.
    """
    shapes = {name: volume.shape for name, volume in volumes.items()}
    if len(set(shapes.values())) > 1:
        what = f"{' and '.join(shapes)} differ in shape (z, y, x)"
        remedy = f"give whole volumes over the same voxels{swapped(*shapes.values())}; a crop applies to all of them"
        raise UserError(what, shapes, remedy)


def _check(prediction: Volume, truth: Volume, crop: Box | None, bands: Sequence[float], slabs: int) -> Box:
    check_shapes(prediction=prediction, truth=truth)
    if any(not d > 0 for d in bands):
        raise UserError("a boundary band has no width", list(bands), "give positive widths, or bands=[]")
    if isinstance(slabs, bool) or not isinstance(slabs, int) or slabs < 1:
        raise UserError("slabs is not a number of parts", slabs, "give 1 or more")
    crop = crop or truth.box
    if crop.size == 0 or crop.clip(truth.box) != crop:
        raise UserError("the crop is empty or leaves the volume", str(crop), f"the volume is {truth.box}")
    return crop


def _shares(by_slice: Sequence[Counts], parts: int) -> list[Counts]:
    """Counts of equal runs of slices."""
    n, parts = len(by_slice), min(parts, len(by_slice))
    return [sum(by_slice[n * i // parts : n * (i + 1) // parts], Counts()) for i in range(parts)]


def _blocks(crop: Box, margin: Sequence[int], depth: int | None, voxels: float = BLOCK_VOXELS) -> Iterator[Box]:
    """Cut the crop into slabs, and these into columns where a plane is too large to hold."""
    side = _PLANE
    while side > _SMALLEST and (side + 2 * margin[1]) * (side + 2 * margin[2]) * (2 * margin[0] + 1) > voxels:
        side //= 2
    _, y0, x0 = crop.start
    _, y1, x1 = crop.stop
    plane = math.prod(min(n, side) + 2 * m for n, m in zip(crop.shape[1:], margin[1:], strict=True))
    depth = depth or max(1, int(voxels // plane) - 2 * margin[0])
    for slab in cut(crop, depth):
        for y in range(y0, y1, side):
            for x in range(x0, x1, side):
                stop = (slab.stop[0], min(y + side, y1), min(x + side, x1))
                yield Box((slab.start[0], y, x), stop)


@dataclass(frozen=True)
class BlockCounts:
    """What one block gives; blocks are added in any order.

    Attributes:
        by_slice: Counts of each slice of the block.
        near: For each of `DIMS`, what each band leaves out.
        histogram: Log-odds by class; zeros if the prediction holds none.
    """

    by_slice: list[Counts]
    near: dict[int, list[Counts]]
    histogram: Ints


@dataclass(frozen=True)
class CountBlock:
    """Counts one block.

    Attributes:
        prediction: What is scored.
        truth: Mapped labels: 0 background, 1 foreground, 255 ignored.
        decision: What the prediction's values mean.
        bands: Widths of the boundary bands, ascending.
        voxel_size: (z, y, x), any unit.
    """

    prediction: Volume
    truth: Volume
    decision: Decision
    bands: Sequence[float]
    voxel_size: Sequence[float]

    def __call__(self, block: Box) -> BlockCounts:
        """The counts of a block; the truth around it tells what is near a border."""
        outer = block.grow(halo(self.bands, self.voxel_size)).clip(self.truth.box)
        truth_zyx, values_zyx = self.truth.read(outer), self.prediction.read(block)
        inner = block.inside(outer)
        histogram = np.zeros((2, BINS), np.int64)
        with one_at_a_time():
            foreground_zyx, by_slice = _count_slices(values_zyx, truth_zyx[inner.slices], self.decision, histogram)
            near = {
                dims: near_counts(
                    foreground_zyx, truth_zyx, inner, bands=self.bands, voxel_size=self.voxel_size, dims=dims
                )
                for dims in (DIMS if self.bands else ())
            }
        return BlockCounts(by_slice, near, histogram)


def _count_slices(
    values_zyx: Array, truth_zyx: npt.NDArray[np.uint8], decision: Decision, histogram: Ints
) -> tuple[npt.NDArray[np.bool_], list[Counts]]:
    """Foreground, and the counts of each slice; log-odds of probabilities are added to the histogram."""
    foreground_zyx = decision.foreground(values_zyx)
    if decision.kind == "probability":
        for values_yx, truth_yx in zip(values_zyx, truth_zyx, strict=True):  # a slice at a time: it costs memory
            histogram += logit_histogram(decision.log_odds(values_yx), truth_yx)
    return foreground_zyx, [count(*pair) for pair in zip(foreground_zyx, truth_zyx, strict=True)]


DIMS = (3, 2)
"""The boundary band in 3D, and its in-plane variant."""


class Evaluation(dict[str, object]):
    """What scoring gives: plain data, as ``metrics.json`` holds it.

    Attributes:
        histogram: `mitoseg.metrics.logit_histogram` of a prediction that holds probabilities; it is too long for the
            file, and needed to pool volumes.
    """

    histogram: Ints | None = None


@dataclass(frozen=True)
class Tally:
    """Counts of each z-slab, of what each boundary band leaves out, and of probabilities.

    Attributes:
        bands: Widths, ascending.
        slabs: Counts of each z-slab, whose sum is everything that was scored.
        near: For each of `DIMS`, what each band leaves out.
        histogram: Log-odds by class; None if the prediction holds none.
    """

    bands: Sequence[float]
    slabs: list[Counts]
    near: dict[int, list[Counts]] = field(default_factory=dict)
    histogram: Ints | None = None

    def __post_init__(self) -> None:
        for dims in DIMS:
            self.near.setdefault(dims, [Counts()] * len(self.bands))

    def __add__(self, other: Tally) -> Tally:
        """Both volumes: their slabs side by side, all else summed."""
        if list(self.bands) != list(other.bands):
            raise ValueError(f"cannot pool bands {list(self.bands)} with {list(other.bands)}")
        near = {dims: [a + b for a, b in zip(self.near[dims], other.near[dims], strict=True)] for dims in DIMS}
        missing = self.histogram is None or other.histogram is None
        histogram = None if missing else self.histogram + other.histogram  # type: ignore[operator]
        return Tally(self.bands, self.slabs + other.slabs, near, histogram)

    @property
    def total(self) -> Counts:
        """Counts of everything."""
        return sum(self.slabs, Counts())

    @classmethod
    def from_report(cls, result: Mapping[str, object]) -> Tally:
        """The tally that a report was made of; without the histogram if the report comes from a file."""
        slabs = [Counts(**counts) for counts in result["slab_counts"]]  # type: ignore[attr-defined]
        rows: list[Mapping[str, object]] = result["boundary"]  # type: ignore[assignment]
        total = sum(slabs, Counts())
        near = {
            dims: [total - Counts(**row["counts"]) for row in rows if row["dims"] == dims]  # type: ignore[arg-type]
            for dims in DIMS
        }
        bands: list[float] = [row["distance"] for row in rows if row["dims"] == DIMS[0]]  # type: ignore[misc]
        return cls(bands, slabs, near, getattr(result, "histogram", None))

    def report(self, bootstrap: Bootstrap, about: Mapping[str, object]) -> Evaluation:
        """Scores of everything with their intervals, of what each band leaves, and of the probabilities.

        Args:
            bootstrap: How intervals are made.
            about: Further entries.
        """
        draws = asdict(bootstrap)
        intervals = bootstrap_intervals(self.slabs, **draws) if bootstrap.resamples else {}
        boundary = [
            self._row(distance, dims, self.near[dims][i]) for i, distance in enumerate(self.bands) for dims in DIMS
        ]
        report = Evaluation(
            scores(self.total),
            interval={name: list(ends) for name, ends in intervals.items()},
            **about,
            **probability_scores(self.histogram) if self.histogram is not None else {},
            bootstrap={**draws, "level": LEVEL},
            counts=asdict(self.total),
            slab_counts=[asdict(counts) for counts in self.slabs],
            boundary=boundary,
        )
        report.histogram = self.histogram
        return report

    def _row(self, distance: float, dims: int, near: Counts) -> dict[str, object]:
        def share(part: int, whole: int) -> float:
            return part / whole if whole else math.nan

        total = self.total
        left_out = {
            "left_out_foreground": share(near.foreground, total.foreground),
            "left_out_background": share(near.background, total.background),
        }
        kept = total - near
        return {"distance": distance, "dims": dims, **scores(kept), **left_out, "counts": asdict(kept)}


Bools = npt.NDArray[np.bool_]

Labels = npt.NDArray[np.uint8]

_THREADS = min(8, usable_cores())

_ROUNDING = 1 + 1e-5  # distances are single precision; a tie belongs to the band


def relative_spacing(voxel_size: Sequence[float]) -> tuple[float, ...]:
    """Spacing along each axis in units of the smallest.

    >>> relative_spacing((50, 5, 5))
    (10.0, 1.0, 1.0)
    """
    return tuple(float(s) / float(min(voxel_size)) for s in voxel_size)


def halo(bands: Sequence[float], voxel_size: Sequence[float]) -> tuple[int, int, int]:
    """Voxels (z, y, x) beyond a box in which the other class can be near enough to matter.

    >>> halo([1, 5], (20, 5, 10))
    (1, 5, 2)
    """
    widest = max(bands, default=0.0) * _ROUNDING
    z, _, _ = relative_spacing(voxel_size)
    y, x = relative_spacing(voxel_size[1:])
    return int(widest / z), int(widest / y), int(widest / x)


def squared_distance(truth: Labels, spacing: Sequence[float]) -> npt.NDArray[np.float32]:
    """Squared distance from each voxel to the nearest one of the other class; very large where there is none.

    Args:
        truth: 2D or 3D, 0, 1 or 255; the value at ignored voxels is undefined.
        spacing: Along each axis.
    """

    def to_zero(mask: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = edt.edtsq(mask, anisotropy=tuple(spacing), parallel=_THREADS)
        return result

    truth = np.ascontiguousarray(truth)
    if (truth == IGNORE).any():
        return np.where(truth == 1, to_zero(truth != 0), to_zero(truth != 1))
    # Without ignored voxels one pass serves both classes: it measures to the nearest voxel of another label.
    return to_zero(truth + np.uint8(1))


def near_counts(
    prediction_zyx: Bools,
    truth_zyx: Labels,
    inner: Box,
    *,
    bands: Sequence[float],
    voxel_size: Sequence[float],
    dims: int,
) -> list[Counts]:
    """Counts of the voxels that each band leaves out.

    Args:
        prediction_zyx: Of the inner box.
        truth_zyx: Of the inner box and its `halo`, as far as the volume reaches; 0, 1 or 255.
        inner: The inner box, in coordinates of ``truth_zyx``.
        bands: Widths, ascending, in units of the smallest spacing (of the smallest in-plane one for ``dims=2``).
        voxel_size: (z, y, x), any unit.
        dims: 3, or 2 for distances within each slice.

    Returns:
        One `Counts` a band, each including the narrower ones.
    """
    if dims == 3:
        distance_zyx = squared_distance(truth_zyx, relative_spacing(voxel_size))[inner.slices]
    else:
        spacing = relative_spacing(voxel_size[1:])
        slices = truth_zyx[inner.slices[0]]
        distance_zyx = np.stack([squared_distance(slice_yx, spacing)[inner.slices[1:]] for slice_yx in slices])
    limits = np.square(np.asarray(bands, np.float64)) * _ROUNDING
    truth_inner_zyx = truth_zyx[inner.slices]
    # Few voxels are near a border, so only those are sorted into bands.
    near = (distance_zyx <= limits[-1]) & (truth_inner_zyx != IGNORE)
    band = np.searchsorted(limits, distance_zyx[near])
    code = 4 * band + 2 * prediction_zyx[near] + truth_inner_zyx[near]
    table = np.bincount(code, minlength=4 * len(bands)).reshape(len(bands), 4).cumsum(axis=0)
    return [Counts(tp=int(tp), fp=int(fp), fn=int(fn), tn=int(tn)) for tn, fn, fp, tp in table]


POINTS = 100
"""Of the stored precision-recall curve: one for each percent of recall."""


def probability_scores(hist: Ints) -> dict[str, object]:
    """Scores of the probabilities as they are stored.

    Args:
        hist: `mitoseg.metrics.logit_histogram` of everything that is scored.

    Returns:
        ``average_precision`` (the area under precision over recall); ``expected_calibration_error`` and
        ``adaptive_calibration_error`` (15 bins of equal width, and of equally many voxels);
        ``negative_log_likelihood`` (nats a voxel); ``brier_score``; ``jaccard_foreground_oracle``, the foreground's
        Jaccard index at ``threshold_oracle``, the best threshold for the very voxels that are scored: an upper bound,
        chosen on the scored volume, never a result. Then the curves: ``precision_recall`` with ``threshold``,
        ``precision``, ``recall``, and ``reliability`` and ``reliability_adaptive`` with ``voxels``, ``confidence``,
        ``share`` by bin.
        NaN, or an empty curve, where a class is missing that is needed.
    """
    points = curve(hist)
    threshold, oracle = best_threshold(points)
    by_width, by_mass = reliability_bins(hist), reliability_bins(hist, adaptive=True)
    return {
        "average_precision": average_precision(points),
        "expected_calibration_error": by_width.error,
        "adaptive_calibration_error": by_mass.error,
        "negative_log_likelihood": negative_log_likelihood(hist, AS_STORED),
        "brier_score": brier_score(hist),
        "jaccard_foreground_oracle": oracle,
        "threshold_oracle": float(expit(threshold)),
        "precision_recall": _thinned(points),
        "reliability": _listed(by_width),
        "reliability_adaptive": _listed(by_mass),
    }


def _thinned(points: Curve) -> dict[str, list[float]]:
    """The highest threshold that reaches each percent of recall, ascending."""
    if not points.tp[0]:
        return {"threshold": [], "precision": [], "recall": []}
    precision, recall = precision_recall(points)
    wanted = np.arange(1, POINTS + 1) / POINTS
    at = np.unique(len(recall) - 1 - np.searchsorted(recall[::-1], wanted - 1e-12))
    return {
        "threshold": expit(points.threshold_logit[at]).tolist(),
        "precision": precision[at].tolist(),
        "recall": recall[at].tolist(),
    }


def _listed(bins: Reliability) -> dict[str, list[float]]:
    return {name: getattr(bins, name).tolist() for name in ("voxels", "confidence", "share")}
