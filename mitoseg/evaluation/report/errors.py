"""The worst errors: connected runs of false and of missed voxels, the largest first.

An error that is nearly all of a result's component is a false object; one that is nearly all of a true component is
a missed object. The others are parts: outlines that run too far or too short, or pieces that were joined or lost.
Pictures show each at its largest slice, with the outlines of truth and result.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion

from mitoseg.evaluation.figures import FALSE, MISSED, TRUTH, stretch
from mitoseg.evaluation.report.markup import Content, Section, data_uri, number, picture
from mitoseg.evaluation.report.pictures import RESULT, css_colour, read_where
from mitoseg.geometry import Box, slabs
from mitoseg.metrics import IGNORE
from mitoseg.volumes.base import Array, Volume

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


_LEAST, _MOST = 96, 288  # pixels of a crop's side

_SIDE = 288  # pixels of a picture's side, about

_QUALITY = 80


def gallery_section(content: Content) -> Section | None:
    """The worst errors; None without truth and result."""
    box, volumes = content.box, content.volumes
    if box is None or "truth" not in volumes or "result" not in volumes:
        return None
    faults = worst_faults(volumes["result"], volumes["truth"], box, content.options.errors)
    parts = []
    for kind, title in (("false", "False: found where there is none"), ("missed", "Missed")):
        cards = [_card(fault, content, box) for fault in faults if fault.kind == kind]
        if cards:
            parts.append((title, cards))
    return {"parts": parts, "truth": css_colour(TRUTH), "result": css_colour(RESULT)}


def _card(fault: Fault, content: Content, box: Box) -> dict[str, object]:
    size = f"{fault.voxels:,} voxels"
    if content.spacing is not None:
        size += f", {number(fault.voxels * float(np.prod(content.spacing)) * 1e-9, 3)} µm³"
    shown = data_uri("image/webp", picture(crop_picture(fault, content, box), _QUALITY))
    what = f"{fault.kind} {'object' if fault.whole else 'part'}"
    return {"what": what, "at": fault.at, "size": size, "picture": shown}


def crop_picture(fault: Fault, content: Content, box: Box) -> npt.NDArray[np.uint8]:
    """The surroundings of an error as RGB, enlarged by a whole number: it is tinted, truth and result outlined."""
    volumes = content.volumes
    window = crop_window(fault, box)
    truth_yx = volumes["truth"].read(window)[0] == 1
    result_yx = volumes["result"].read(window)[0] != 0
    grey_yx = _grey(volumes.get("image"), window, truth_yx.shape)
    scale = max(1, round(_SIDE / max(grey_yx.shape)))
    square = np.ones((scale, scale), bool)
    rgb = np.repeat(np.kron(grey_yx, square)[..., None], 3, axis=-1).astype(np.float32)
    wrong_yx = (result_yx & ~truth_yx) if fault.kind == "false" else (truth_yx & ~result_yx)
    wrong_yx &= _within(fault.box, window)
    tint = np.kron(wrong_yx, square).astype(bool)
    rgb[tint] = 0.72 * rgb[tint] + 0.28 * np.array(FALSE if fault.kind == "false" else MISSED)
    for mask_yx, colour, depth in ((result_yx, RESULT, 2), (truth_yx, TRUTH, 1)):
        rgb[outline(np.kron(mask_yx, square).astype(bool), depth)] = colour
    return (255 * rgb + 0.5).astype(np.uint8)


def _within(box: Box, window: Box) -> npt.NDArray[np.bool_]:
    """The part of a window's slice that a box covers."""
    inside = np.zeros(window.shape[1:], bool)
    inside[box.clip(window).inside(window).slices[1:]] = True
    return inside


def outline(mask_yx: npt.NDArray[np.bool_], depth: int) -> npt.NDArray[np.bool_]:
    """The pixels of a mask that lie within ``depth`` pixels of its border; the picture's frame is no border."""
    inner: npt.NDArray[np.bool_] = binary_erosion(mask_yx, iterations=depth, border_value=1)
    return mask_yx & ~inner


def crop_window(fault: Fault, box: Box) -> Box:
    """A square of one slice round an error, inside the box."""
    extent = max(fault.box.shape[1:])
    z, *middle = fault.at
    side = int(min(max(1.6 * extent, _LEAST), _MOST))
    start, stop = [z], [z + 1]
    for centre, low, high in zip(middle, box.start[1:], box.stop[1:], strict=True):
        first = max(low, min(centre - side // 2, high - side))
        start.append(first)
        stop.append(min(first + side, high))
    return Box(tuple(start), tuple(stop))


def _grey(image: Volume | None, window: Box, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if image is None:
        return np.full(shape, 0.25, np.float32)
    image_yx: Array = image.read(window)[0]
    return stretch(image_yx)
