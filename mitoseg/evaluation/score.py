"""Score a stored prediction against the truth, slab by slab, at any size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.progress import track

from mitoseg.errors import UserError
from mitoseg.evaluation.boundary import halo, near_counts
from mitoseg.evaluation.decision import decide
from mitoseg.geometry import Box, slabs
from mitoseg.metrics import Counts, count, scores
from mitoseg.volumes.base import Volume

BANDS = (1, 2, 3, 4, 5)
"""Widths of the boundary bands, in voxels of the smallest spacing."""
DIMS = (3, 2)
"""The band in 3D, and its in-plane variant."""
BLOCK_VOXELS = 2**25
"""Voxels held at once, the halo included; a voxel costs about ten bytes."""
_PLANE = 2048  # longest side, in y and x, of what is held at once


def evaluate(
    prediction: Volume,
    truth: Volume,
    *,
    threshold: float | None = None,
    crop: Box | None = None,
    bands: Sequence[float] = BANDS,
    kind: str | None = None,
    voxel_size: Sequence[float] | None = None,
    depth: int | None = None,
    progress: bool = False,
) -> dict[str, object]:
    """Score two volumes; all scores are pooled over voxels.

    Args:
        prediction: Probabilities, a mask or instances; see `mitoseg.evaluation.decision.decide`.
        truth: Mapped labels: 0 background, 1 foreground, 255 ignored.
        threshold: Overrides the one in the prediction's metadata.
        crop: The part that is scored; the truth beyond it still tells what is near a border.
        bands: Widths of the boundary bands, in voxels of the smallest spacing; none for no such scores.
        kind: Overrides what the prediction's metadata says it is.
        voxel_size: (z, y, x), any unit; None: the truth's, else the prediction's, else taken as cubic.
        depth: Slices of a slab; None: as many as memory allows. It does not change the result.
        progress: Show a bar on stderr.

    Returns:
        The keys of `mitoseg.metrics.scores`, ``threshold``, ``threshold_source``, ``kind``, ``crop``, ``shape``,
        ``voxel_size`` (None: taken as cubic), ``counts``, and ``boundary``: for each band and each of `DIMS`,
        ``distance``, ``dims``, the scores of what is left, its ``counts``, and the shares ``left_out_foreground`` and
        ``left_out_background``. A score without a denominator is NaN.

    Raises:
        UserError: The shapes differ, the crop leaves the volume, or an argument is out of range.
    """
    crop = _check(prediction, truth, crop, bands)
    bands = sorted(set(bands))
    decision = decide(prediction, threshold, kind)
    spacing = voxel_size or truth.voxel_size or prediction.voxel_size
    known = None if spacing is None else [float(s) for s in spacing]
    pooled = _Pooled(bands)
    margin = halo(bands, known or (1, 1, 1))
    blocks = list(_blocks(crop, margin, depth))
    for block in track(blocks, "scoring", console=Console(stderr=True), disable=not progress):
        outer = block.grow(margin).clip(truth.box)
        truth_zyx = truth.read(outer)
        foreground_zyx = decision.foreground(prediction.read(block))
        inner = block.inside(outer)
        pooled.total += count(foreground_zyx, truth_zyx[inner.slices])
        for dims in DIMS if bands else ():
            found = near_counts(
                foreground_zyx, truth_zyx, inner, bands=bands, voxel_size=known or (1, 1, 1), dims=dims
            )
            pooled.near[dims] = [a + b for a, b in zip(pooled.near[dims], found, strict=True)]
    about = {"kind": decision.kind, "crop": str(crop), "shape": list(truth.shape), "voxel_size": known}
    return pooled.report() | {"threshold": decision.threshold, "threshold_source": decision.source} | about


def pool_evaluations(results: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """One result for several volumes, their voxels pooled.

    Args:
        results: What `evaluate` gave for each, with the same bands.

    Returns:
        `evaluate`'s keys; where the volumes differ in threshold, crop, shape and the like, a list of them all.

    Raises:
        ValueError: There is none, or their bands differ.
    """
    if not results:
        raise ValueError("no evaluation to pool")
    if len(results) == 1:
        return dict(results[0])
    parts = [_Pooled.from_report(result) for result in results]
    pooled = parts[0]
    for part in parts[1:]:
        pooled += part
    shared: dict[str, object] = {}
    for key in ("threshold", "threshold_source", "kind", "crop", "shape", "voxel_size"):
        values = [result[key] for result in results]
        shared[key] = values[0] if all(v == values[0] for v in values) else values
    return pooled.report() | shared


def check_shapes(**volumes: Volume) -> None:
    """Refuse volumes of different shapes.

    Raises:
        UserError: With the shape (z, y, x) of each by its keyword.
    """
    shapes = {name: volume.shape for name, volume in volumes.items()}
    if len(set(shapes.values())) > 1:
        what = f"{' and '.join(shapes)} differ in shape (z, y, x)"
        raise UserError(what, shapes, "give whole volumes over the same voxels; a crop applies to all of them")


@dataclass
class _Pooled:
    """Counts of everything scored, and of what each band leaves out."""

    bands: Sequence[float]
    total: Counts = field(default_factory=Counts)
    near: dict[int, list[Counts]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.near = self.near or {dims: [Counts()] * len(self.bands) for dims in DIMS}

    def __iadd__(self, other: _Pooled) -> _Pooled:
        if list(self.bands) != list(other.bands):
            raise ValueError(f"cannot pool bands {list(self.bands)} with {list(other.bands)}")
        self.total += other.total
        for dims in DIMS:
            self.near[dims] = [a + b for a, b in zip(self.near[dims], other.near[dims], strict=True)]
        return self

    @classmethod
    def from_report(cls, result: Mapping[str, object]) -> _Pooled:
        total = _counts(result)
        rows: list[Mapping[str, object]] = result["boundary"]  # type: ignore[assignment]
        near = {dims: [total - _counts(row) for row in rows if row["dims"] == dims] for dims in DIMS}
        return cls([row["distance"] for row in rows if row["dims"] == 3], total, near)  # type: ignore[misc]

    def report(self) -> dict[str, object]:
        """Scores of everything, and of what each band leaves."""
        boundary = [
            self._row(distance, dims, self.near[dims][i]) for i, distance in enumerate(self.bands) for dims in DIMS
        ]
        return {**scores(self.total), "counts": asdict(self.total), "boundary": boundary}

    def _row(self, distance: float, dims: int, near: Counts) -> dict[str, object]:
        def share(part: int, whole: int) -> float:
            return part / whole if whole else math.nan

        left_out = {
            "left_out_foreground": share(near.foreground, self.total.foreground),
            "left_out_background": share(near.background, self.total.background),
        }
        kept = self.total - near
        return {"distance": distance, "dims": dims, **scores(kept), **left_out, "counts": asdict(kept)}


def _counts(report: Mapping[str, object]) -> Counts:
    return Counts(**report["counts"])  # type: ignore[arg-type]


def _check(prediction: Volume, truth: Volume, crop: Box | None, bands: Sequence[float]) -> Box:
    check_shapes(prediction=prediction, truth=truth)
    if any(not d > 0 for d in bands):
        raise UserError("a boundary band has no width", list(bands), "give positive widths, or bands=[]")
    crop = crop or truth.box
    if crop.size == 0 or crop.clip(truth.box) != crop:
        raise UserError("the crop is empty or leaves the volume", str(crop), f"the volume is {truth.box}")
    return crop


def _blocks(crop: Box, margin: Sequence[int], depth: int | None) -> Iterator[Box]:
    """Cut the crop into slabs, and these into columns where a plane is too large to hold."""
    _, y0, x0 = crop.start
    _, y1, x1 = crop.stop
    plane = math.prod(min(n, _PLANE) + 2 * m for n, m in zip(crop.shape[1:], margin[1:], strict=True))
    depth = depth or max(1, BLOCK_VOXELS // plane - 2 * margin[0])
    for slab in slabs(crop, depth):
        for y in range(y0, y1, _PLANE):
            for x in range(x0, x1, _PLANE):
                stop = (slab.stop[0], min(y + _PLANE, y1), min(x + _PLANE, x1))
                yield Box((slab.start[0], y, x), stop)
