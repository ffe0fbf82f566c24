"""Score a stored prediction against the truth, slab by slab, at any size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mitoseg.engines import Engine, LocalEngine
from mitoseg.errors import UserError
from mitoseg.evaluation.block_counts import BlockCounts, CountBlock
from mitoseg.evaluation.boundary import halo
from mitoseg.evaluation.decision import decide
from mitoseg.evaluation.tally import DIMS, Bootstrap, Evaluation, Tally
from mitoseg.geometry import Box
from mitoseg.geometry import slabs as cut
from mitoseg.metrics import BINS, Counts
from mitoseg.progress import progress as show_progress
from mitoseg.volumes.base import Volume
from mitoseg.volumes.opening import swapped

BANDS = tuple(range(1, 11))
"""Widths of the boundary bands, in voxels of the smallest spacing."""
SLABS = 8
"""Equal parts of the crop along z; their spread makes the intervals."""
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
        prediction: Probabilities, a mask or instances; see `mitoseg.evaluation.decision.decide`.
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
        `mitoseg.evaluation.probabilities.probability_scores`. A score without a denominator is NaN.

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
