r"""Score a stored prediction against the truth, block by block, at any size.

Annotators differ by a voxel or two where a membrane belongs, so a score is also given without the voxels near the
border of the truth. A band of width d leaves out, on both sides, the voxels whose Euclidean distance to the nearest
voxel of the other true class is at most d (centre to centre, in units of the smallest voxel spacing):

    truth             0  0  0  0 | 1  1  1  1
    distance          4  3  2  1 | 1  2  3  4
    left out, d = 2         x  x | x  x

In 3D a voxel is also left out when the other class lies above or below it; the in-plane variant asks its own slice
alone. Ignored voxels (255) are not a class: they are not counted, and nothing is near them.

Scores of probabilities (ranking, calibration, the best threshold) all come from one log-odds histogram, so a map of
any size costs one pass. Log-odds are known to 0.005, and those beyond ±20 count as ±20
(`mitoseg.metrics.histogram`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import edt
import numpy as np
import numpy.typing as npt
from scipy.special import expit

from mitoseg.control_groups import usable_cores
from mitoseg.engines import Engine, LocalEngine, one_at_a_time
from mitoseg.errors import UserError, is_number
from mitoseg.geometry import Box, tiles
from mitoseg.metrics.calibration import brier_score, negative_log_likelihood, reliability_bins
from mitoseg.metrics.counts import IGNORE, LEVEL, Counts, bootstrap_intervals, count, ratio, scores
from mitoseg.metrics.histogram import (
    BINS,
    Curve,
    Ints,
    average_precision,
    best_threshold,
    curve,
    logit_histogram,
    precision_recall,
)
from mitoseg.progress import progress as show_progress
from mitoseg.volumes.base import Volume
from mitoseg.volumes.opening import swapped
from mitoseg.volumes.predicted import Decision, decide

Labels = npt.NDArray[np.uint8]

BANDS = tuple(range(1, 11))  # widths of the boundary bands, in voxels of the smallest spacing
DIMS = (3, 2)  # the boundary band in 3D, and its in-plane variant
SLABS = 8  # equal parts of the crop along z; their spread makes the intervals
BLOCK_VOXELS = 2**25  # voxels held at once, the halo included, unless memory is short
VOXEL_BYTES = 24  # of each of them
_PLANE = 2048  # longest side, in y and x, of what is held at once
_SMALLEST = 64  # below it there would be more halo than block
_THREADS = min(8, usable_cores())
_ROUNDING = 1 + 1e-5  # distances are single precision; a tie belongs to the band


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: draws, 0 for no intervals, and their seed."""

    resamples: int = 2000
    seed: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UserError(f"bootstrap: {name} is not a whole number", value, "give 0 or more")


DRAWS = Bootstrap()


class Evaluation(dict[str, Any]):
    """What scoring gives: plain data, as ``metrics.json`` holds it.

    ``histogram`` is `logit_histogram` of a prediction that holds probabilities; it is too long for the
    file, and needed to pool volumes.
    """

    histogram: Ints | None = None


BlockCounts = tuple[list[Counts], dict[int, list[Counts]], Ints]
"""Counts of each slice, of what each band leaves out by `DIMS`, and log-odds by class (zeros for a mask)."""


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
    """Score a prediction of any kind against labels mapped to 0, 1 and 255 (ignored), pooled over voxels.

    The keys are those of `mitoseg.metrics.scores`; ``interval``, by score the ends of its 95 % interval over the slabs
    (`bootstrap_intervals`); ``threshold``, ``threshold_source``, ``kind``, ``crop``, ``shape``,
    ``voxel_size`` (None: taken as cubic), ``bootstrap``, ``counts``, ``slab_counts``, and ``boundary``: for each
    band and each of `DIMS`, ``distance``, ``dims``, the scores of what is left, its ``counts``, and the shares
    ``left_out_foreground`` and ``left_out_background``. For probabilities also those of `probability_scores`. A score
    without a denominator is NaN.

    ``threshold`` and ``kind`` overrule the prediction's metadata (`mitoseg.volumes.predicted.decide`). Only the
    ``crop`` is scored; the truth beyond it still tells what is near a border. ``bands`` are widths in voxels of the
    smallest spacing; the voxel size (z, y, x) is the truth's where it is not given, else the prediction's. ``slabs``
    are equal parts along z, at most as many as the crop has slices. ``depth`` is how many slices are held at once
    (None: as many as the engine's memory allows), and changes no result. A started ``engine`` counts the blocks.
    """
    check_shapes(prediction=prediction, truth=truth)
    if not np.iterable(bands) or not all(is_number(d) and d > 0 for d in bands):
        raise UserError("a boundary band has no width", bands, "give positive widths, or bands=[]")
    if isinstance(slabs, bool) or not isinstance(slabs, int) or slabs < 1:
        raise UserError("slabs is not a number of parts", slabs, "give 1 or more")
    crop = crop or truth.box
    if crop.size == 0 or crop.clip(truth.box) != crop:
        raise UserError("the crop is empty or leaves the volume", str(crop), f"the volume is {truth.box}")
    bands = sorted(set(bands))
    decision = decide(prediction, threshold, kind)
    given = voxel_size or truth.voxel_size or prediction.voxel_size
    known = None if given is None else [float(s) for s in given]
    spacing = known or (1, 1, 1)
    by_slice = [Counts()] * crop.shape[0]
    near = {dims: [Counts()] * len(bands) for dims in DIMS}
    histogram = np.zeros((2, BINS), np.int64)
    engine = engine or LocalEngine()
    blocks = list(_blocks(crop, halo(bands, spacing), depth, min(BLOCK_VOXELS, engine.item_bytes / VOXEL_BYTES)))
    with show_progress("scoring", len(blocks), unit="blocks", show=progress) as task:

        def add(block: Box, found: BlockCounts) -> None:
            nonlocal histogram
            for i, counts_yx in enumerate(found[0], block.start[0] - crop.start[0]):
                by_slice[i] += counts_yx
            for dims, counts in found[1].items():
                near[dims] = [x + y for x, y in zip(near[dims], counts, strict=True)]
            histogram = histogram + found[2]
            task.advance()

        engine.map(partial(_count_block, prediction, truth, decision, bands, spacing), blocks, add)
    n, parts = len(by_slice), min(slabs, len(by_slice))
    by_slab = [sum(by_slice[n * i // parts : n * (i + 1) // parts], Counts()) for i in range(parts)]
    about = {
        "threshold": decision.threshold,
        "threshold_source": decision.source,
        "kind": decision.kind,
        "crop": str(crop),
        "shape": list(truth.shape),
        "voxel_size": known,
    }
    return _report(bands, by_slab, near, histogram if decision.kind == "probability" else None, bootstrap, about)


def pool_evaluations(results: Sequence[Evaluation | Mapping[str, Any]]) -> Evaluation:
    """One result for several volumes: their voxels pooled, their slabs side by side.

    Where the volumes differ in threshold, crop, shape and the like, there is a list of them all. Results that were
    read back from ``metrics.json`` lack the histogram, and the scores of probabilities are left out.
    """
    if not results:
        raise ValueError("no evaluation to pool")
    bands = [[row["distance"] for row in result["boundary"] if row["dims"] == DIMS[0]] for result in results]
    if any(widths != bands[0] for widths in bands):
        raise ValueError(f"cannot pool different bands: {bands}")
    slabs: list[Counts] = []
    near = {dims: [Counts()] * len(bands[0]) for dims in DIMS}
    for result in results:
        own = [Counts(**counts) for counts in result["slab_counts"]]
        slabs += own
        total = sum(own, Counts())
        for dims, counts in near.items():
            kept = [Counts(**row["counts"]) for row in result["boundary"] if row["dims"] == dims]
            near[dims] = [before + (total - left) for before, left in zip(counts, kept, strict=True)]
    histograms = [h for result in results if (h := getattr(result, "histogram", None)) is not None]
    pooled = np.sum(histograms, axis=0) if len(histograms) == len(results) else None
    about: dict[str, object] = {}
    for key in ("threshold", "threshold_source", "kind", "crop", "shape", "voxel_size"):
        values = [result[key] for result in results]
        about[key] = values[0] if all(v == values[0] for v in values) else values
    draws = results[0]["bootstrap"]
    return _report(bands[0], slabs, near, pooled, Bootstrap(draws["resamples"], draws["seed"]), about)


def _report(
    bands: Sequence[float],
    slabs: Sequence[Counts],
    near: Mapping[int, Sequence[Counts]],
    histogram: Ints | None,
    bootstrap: Bootstrap,
    about: Mapping[str, object],
) -> Evaluation:
    """Scores of everything with their intervals, of what each band leaves, and of the probabilities."""
    draws, total = asdict(bootstrap), sum(slabs, Counts())
    intervals = bootstrap_intervals(slabs, **draws) if bootstrap.resamples else {}
    boundary = []
    for i, distance in enumerate(bands):
        for dims in DIMS:
            left_out, kept = near[dims][i], total - near[dims][i]
            shares = {
                "left_out_foreground": ratio(left_out.foreground, total.foreground),
                "left_out_background": ratio(left_out.background, total.background),
            }
            boundary.append({"distance": distance, "dims": dims, **scores(kept), **shares, "counts": asdict(kept)})
    report = Evaluation(
        scores(total),
        interval={name: list(ends) for name, ends in intervals.items()},
        **about,
        **probability_scores(histogram) if histogram is not None else {},
        bootstrap={**draws, "level": LEVEL},
        counts=asdict(total),
        slab_counts=[asdict(counts) for counts in slabs],
        boundary=boundary,
    )
    report.histogram = histogram
    return report


def check_shapes(**volumes: Volume) -> None:
    """Refuse volumes of different shapes, with the shape (z, y, x) of each by its keyword."""
    shapes = {name: volume.shape for name, volume in volumes.items()}
    if len(set(shapes.values())) > 1:
        what = f"{' and '.join(shapes)} differ in shape (z, y, x)"
        remedy = f"give whole volumes over the same voxels{swapped(*shapes.values())}; a crop applies to all of them"
        raise UserError(what, shapes, remedy)


def _blocks(crop: Box, margin: Sequence[int], depth: int | None, voxels: float = BLOCK_VOXELS) -> Iterator[Box]:
    """Cut the crop into slabs, and these into columns where a plane is too large to hold."""
    side = _PLANE
    while side > _SMALLEST and (side + 2 * margin[1]) * (side + 2 * margin[2]) * (2 * margin[0] + 1) > voxels:
        side //= 2
    plane = math.prod(min(n, side) + 2 * m for n, m in zip(crop.shape[1:], margin[1:], strict=True))
    depth = depth or max(1, int(voxels // plane) - 2 * margin[0])
    return tiles(crop, (depth, side, side))


def _count_block(
    prediction: Volume,
    truth: Volume,
    decision: Decision,
    bands: Sequence[float],
    voxel_size: Sequence[float],
    block: Box,
) -> BlockCounts:
    """The counts of a block; the truth around it tells what is near a border."""
    outer = block.grow(halo(bands, voxel_size)).clip(truth.box)
    truth_zyx, values_zyx = truth.read(outer), prediction.read(block)
    inner = block.inside(outer)
    inner_zyx = truth_zyx[inner.slices]
    histogram = np.zeros((2, BINS), np.int64)
    with one_at_a_time():
        foreground_zyx = decision.foreground(values_zyx)
        if decision.kind == "probability":
            for values_yx, truth_yx in zip(values_zyx, inner_zyx, strict=True):  # a slice at a time: it costs memory
                histogram += logit_histogram(decision.log_odds(values_yx), truth_yx)
        by_slice = [count(*pair) for pair in zip(foreground_zyx, inner_zyx, strict=True)]
        options = {"bands": bands, "voxel_size": voxel_size}
        near = {
            dims: near_counts(foreground_zyx, truth_zyx, inner, **options, dims=dims)
            for dims in (DIMS if bands else ())
        }
    return by_slice, near, histogram


def relative_spacing(voxel_size: Sequence[float]) -> tuple[float, ...]:
    """Spacing along each axis in units of the smallest."""
    return tuple(float(s) / float(min(voxel_size)) for s in voxel_size)


def halo(bands: Sequence[float], voxel_size: Sequence[float]) -> tuple[int, int, int]:
    """Voxels (z, y, x) beyond a box in which the other class can be near enough to matter."""
    widest = max(bands, default=0.0) * _ROUNDING
    z, _, _ = relative_spacing(voxel_size)
    y, x = relative_spacing(voxel_size[1:])
    return int(widest / z), int(widest / y), int(widest / x)


def squared_distance(truth: Labels, spacing: Sequence[float]) -> npt.NDArray[np.float32]:
    """Squared distance from each voxel to the nearest one of the other class; very large where there is none.

    Truth is 2D or 3D, 0, 1 or 255; the value at ignored voxels is undefined.
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
    prediction_zyx: npt.NDArray[np.bool_],
    truth_zyx: Labels,
    inner: Box,
    *,
    bands: Sequence[float],
    voxel_size: Sequence[float],
    dims: int,
) -> list[Counts]:
    """Counts of the voxels that each band leaves out, those of narrower ones included.

    The prediction is of the inner box, given in coordinates of the truth, which also has its `halo` as far as the
    volume reaches. Bands are ascending, in units of the smallest spacing; ``dims=2`` for distances within each slice,
    in units of the smallest in-plane one.
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


def probability_scores(hist: Ints) -> dict[str, object]:
    """Scores of the probabilities as they are stored, from the `logit_histogram` of all of them.

    ``average_precision`` (the area under precision over recall); ``expected_calibration_error`` and
    ``adaptive_calibration_error`` (15 bins of equal width, and of equally many voxels); ``negative_log_likelihood``
    (nats a voxel); ``brier_score``; ``jaccard_foreground_oracle``, the foreground's Jaccard index at
    ``threshold_oracle``, the best threshold for the very voxels that are scored: an upper bound, never a result. Then
    the curves ``precision_recall``, ``reliability`` and ``reliability_adaptive``. NaN, or an empty curve, where a
    class is missing that is needed.
    """
    points = curve(hist)
    threshold, oracle = best_threshold(points)
    by_width, by_mass = reliability_bins(hist), reliability_bins(hist, adaptive=True)
    lists = [{name: values.tolist() for name, values in vars(bins).items()} for bins in (by_width, by_mass)]
    return {
        "average_precision": average_precision(points),
        "expected_calibration_error": by_width.error,
        "adaptive_calibration_error": by_mass.error,
        "negative_log_likelihood": negative_log_likelihood(hist),
        "brier_score": brier_score(hist),
        "jaccard_foreground_oracle": oracle,
        "threshold_oracle": float(expit(threshold)),
        "precision_recall": _thinned(points),
        "reliability": lists[0],
        "reliability_adaptive": lists[1],
    }


def _thinned(points: Curve) -> dict[str, list[float]]:
    """The highest threshold that reaches each percent of recall, ascending."""
    if not points.tp[0]:
        return {"threshold": [], "precision": [], "recall": []}
    precision, recall = precision_recall(points)
    wanted = np.arange(1, 101) / 100
    at = np.unique(len(recall) - 1 - np.searchsorted(recall[::-1], wanted - 1e-12))
    return {
        "threshold": expit(points.threshold_logit[at]).tolist(),
        "precision": precision[at].tolist(),
        "recall": recall[at].tolist(),
    }
