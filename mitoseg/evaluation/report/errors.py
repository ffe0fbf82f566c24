"""The worst errors: connected runs of false and of missed voxels, the largest first.

An error that is nearly all of a result's component is a false object; one that is nearly all of a true component is
a missed object. The others are parts: outlines that run too far or too short, or pieces that were joined or lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt

from mitoseg.evaluation.report.reducing import read_where
from mitoseg.geometry import Box, slabs
from mitoseg.metrics import IGNORE
from mitoseg.volumes.base import Volume

SLAB_VOXELS = 2**26
"""Looked at in one piece; an error that reaches from one slab into the next counts as two."""
WHOLE = 0.8
"""Share of an object from which the whole object is wrong."""
LEAST = 1000
"""Voxels from which a whole object comes before larger parts."""
_FALSE, _MISSED, _FOUND = 1, 2, 3


@dataclass(frozen=True)
class Fault:
    """One error.

    Attributes:
        kind: ``false`` (found where there is none) or ``missed``.
        whole: Whether that is (nearly) all of an object.
        voxels: How many.
        box: Its bounding box, in voxels of the volume.
        at: (z, y, x) of the middle of its largest slice.
    """

    kind: str
    whole: bool
    voxels: int
    box: Box
    at: tuple[int, int, int]


def worst_faults(result: Volume, truth: Volume, crop: Box, count: int) -> list[Fault]:
    """The largest errors of each kind.

    Args:
        result: Not zero is foreground.
        truth: 0, 1 or 255 (ignored).
        crop: The part that is looked at.
        count: Of false ones, and of missed ones, at most.

    Returns:
        False and missed ones; of each kind first whole objects of at least `LEAST` voxels, then the rest, by size.
    """
    depth = max(1, SLAB_VOXELS // (crop.shape[1] * crop.shape[2]))
    found: list[Fault] = []
    for slab in slabs(crop, depth):
        code_zyx = read_where(result, slab, lambda values: values != 0).view(np.uint8)
        code_zyx |= 2 * read_where(truth, slab, lambda values: values == 1).view(np.uint8)
        code_zyx[read_where(truth, slab, lambda values: values == IGNORE)] = 0
        found += _faults(code_zyx, slab, count)
    chosen = []
    for kind in ("false", "missed"):
        of_kind = (fault for fault in found if fault.kind == kind)
        chosen += sorted(of_kind, key=lambda f: (not f.whole or f.voxels < LEAST, -f.voxels))[:count]
    return chosen


def _faults(code_zyx: npt.NDArray[np.uint8], slab: Box, count: int) -> list[Fault]:
    """Those of one slab; a voxel's code is 1 in the result alone, 2 in the truth alone, 3 in both, 0 in neither."""
    label_zyx = cc3d.connected_components(np.where(code_zyx == _FOUND, np.uint8(0), code_zyx), connectivity=6)
    table = cc3d.statistics(label_zyx)
    voxels, boxes = table["voxel_counts"], table["bounding_boxes"]
    candidates = []
    for code in (_FALSE, _MISSED):
        share = _share_of_object(code_zyx, code, label_zyx, voxels)
        own = np.flatnonzero(share >= 0)
        later = (share[own] < WHOLE) | (voxels[own] < LEAST)
        order = own[np.lexsort((-voxels[own].astype(np.int64), later))]
        candidates += [(int(label), code, float(share[label])) for label in order[:count]]
    return [
        _fault(label_zyx, label, boxes[label], "false" if code == _FALSE else "missed", share >= WHOLE, slab)
        for label, code, share in candidates
        if label != 0
    ]


def _share_of_object(
    code_zyx: npt.NDArray[np.uint8],
    code: int,
    label_zyx: npt.NDArray[np.unsignedinteger],
    voxels: npt.NDArray[np.unsignedinteger],
) -> npt.NDArray[np.float64]:
    """For each error, its share of the object that it lies in; -1 for those of the other kind."""
    object_zyx = cc3d.connected_components((code_zyx & code) != 0, connectivity=6)
    size = np.zeros(int(object_zyx.max()) + 1, np.int64)
    for label_yx in object_zyx:  # slice by slice, as bincount makes eight bytes of each voxel
        size += np.bincount(label_yx.ravel(), minlength=len(size))
    share = np.full(len(voxels), -1.0)
    wrong_zyx = code_zyx == code
    label, owner = label_zyx[wrong_zyx], object_zyx[wrong_zyx]  # an error lies in one object, as it is connected
    share[label] = voxels[label].astype(np.float64) / size[owner]
    return share


def _fault(
    label_zyx: npt.NDArray[np.unsignedinteger],
    label: int,
    inside: tuple[slice, ...],
    kind: str,
    whole: bool,
    slab: Box,
) -> Fault:
    own_zyx = label_zyx[inside] == label
    by_slice = own_zyx.sum(axis=(1, 2))
    z = int(by_slice.argmax())
    ys, xs = np.nonzero(own_zyx[z])
    nearest = int(np.hypot(ys - ys.mean(), xs - xs.mean()).argmin())  # a voxel of it: the mean may lie beside a bend
    at = (z, int(ys[nearest]), int(xs[nearest]))
    start = [s.start + origin for s, origin in zip(inside, slab.start, strict=True)]
    box = Box(tuple(start), tuple(a + n for a, n in zip(start, own_zyx.shape, strict=True)))
    placed = tuple(a + b for a, b in zip(at, start, strict=True))
    return Fault(kind, whole, int(by_slice.sum()), box, (placed[0], placed[1], placed[2]))
