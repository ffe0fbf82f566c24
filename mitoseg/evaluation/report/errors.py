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
from mitoseg.evaluation.report.pictures import RESULT, STRIP_VOXELS, css_colour
from mitoseg.geometry import Box, slabs
from mitoseg.metrics import IGNORE
from mitoseg.volumes.base import Volume

SLAB_VOXELS = 2**26  # looked at in one piece; an error that reaches from one slab into the next counts as two
WHOLE = 0.8  # share of an object from which the whole object is wrong
LEAST = 1000  # voxels from which a whole object comes before larger parts
KINDS = {"false": 1, "missed": 2}
"""The code of a voxel in the result alone, and in the truth alone; 3 in both, 0 in neither."""

_NARROWEST, _WIDEST = 96, 288  # pixels of a crop's side
_SIDE = 288  # pixels of a picture's side, about


@dataclass(frozen=True)
class Fault:
    """One error: whether it is (nearly) all of an object, its box, and where (z, y, x) in its largest slice it is."""

    kind: str
    whole: bool
    voxels: int
    box: Box
    at: tuple[int, int, int]


def worst_faults(result: Volume, truth: Volume, crop: Box, count: int) -> list[Fault]:
    """The largest false and then missed errors: whole objects of at least `LEAST` voxels, then the rest, by size.

    In the result what is not zero is foreground; the truth is 0, 1 or 255 (ignored). At most ``count`` of each kind.
    """
    depth = max(1, SLAB_VOXELS // (crop.shape[1] * crop.shape[2]))
    found: list[Fault] = []
    for slab in slabs(crop, depth):
        code_zyx = np.empty(slab.shape, np.uint8)
        for strip in slabs(slab, max(1, STRIP_VOXELS // (4 * slab.shape[1] * slab.shape[2]))):  # to read few at once
            found_zyx, truth_zyx = result.read(strip) != 0, truth.read(strip)
            strip_zyx = found_zyx + np.uint8(2) * (truth_zyx == 1)
            code_zyx[strip.inside(slab).slices] = np.where(truth_zyx == IGNORE, np.uint8(0), strip_zyx)
        found += _faults(code_zyx, slab, count)
    chosen = []
    for kind in KINDS:
        of_kind = (fault for fault in found if fault.kind == kind)
        chosen += sorted(of_kind, key=lambda f: (not f.whole or f.voxels < LEAST, -f.voxels))[:count]
    return chosen


def _faults(code_zyx: npt.NDArray[np.uint8], slab: Box, count: int) -> list[Fault]:
    """Those of one slab."""
    label_zyx = cc3d.connected_components(np.where(code_zyx == 3, np.uint8(0), code_zyx), connectivity=6)
    table = cc3d.statistics(label_zyx)
    voxels, boxes = table["voxel_counts"], table["bounding_boxes"]
    found = []
    for kind, code in KINDS.items():
        object_zyx = cc3d.connected_components((code_zyx & code) != 0, connectivity=6)
        size = np.zeros(int(object_zyx.max()) + 1, np.int64)
        for label_yx in object_zyx:  # slice by slice, as bincount makes eight bytes of each voxel
            size += np.bincount(label_yx.ravel(), minlength=len(size))
        share = np.full(len(voxels), -1.0)  # of the object that an error lies in; -1 for those of the other kind
        wrong_zyx = code_zyx == code
        label, owner = label_zyx[wrong_zyx], object_zyx[wrong_zyx]  # an error lies in one object, as it is connected
        share[label] = voxels[label].astype(np.float64) / size[owner]
        own = np.flatnonzero(share >= 0)
        later = (share[own] < WHOLE) | (voxels[own] < LEAST)
        order = own[np.lexsort((-voxels[own].astype(np.int64), later))]
        for one in filter(None, order[:count].tolist()):
            own_zyx = label_zyx[boxes[one]] == one
            start = tuple(s.start + n for s, n in zip(boxes[one], slab.start, strict=True))
            stop = tuple(a + n for a, n in zip(start, own_zyx.shape, strict=True))
            z = int(own_zyx.sum(axis=(1, 2)).argmax())
            ys, xs = np.nonzero(own_zyx[z])
            nearest = int(np.hypot(ys - ys.mean(), xs - xs.mean()).argmin())  # the mean may lie beside a bend
            at = (start[0] + z, start[1] + int(ys[nearest]), start[2] + int(xs[nearest]))
            whole = bool(share[one] >= WHOLE)
            found.append(Fault(kind, whole, int(own_zyx.sum()), Box(start, stop), at))
    return found


def gallery_section(content: Content) -> Section | None:
    """The worst errors; None without truth and result."""
    box, volumes = content.box, content.volumes
    if box is None or "truth" not in volumes or "result" not in volumes:
        return None
    cards: dict[str, list[Section]] = {kind: [] for kind in KINDS}
    for fault in worst_faults(volumes["result"], volumes["truth"], box, content.options.errors):
        size = f"{fault.voxels:,} voxels"
        if content.spacing is not None:
            size += f", {number(fault.voxels * float(np.prod(content.spacing)) * 1e-9, 3)} µm³"
        shown = data_uri("image/webp", picture(_crop_picture(fault, volumes, box), 80))
        what = f"{fault.kind} {'object' if fault.whole else 'part'}"
        cards[fault.kind].append({"what": what, "at": fault.at, "size": size, "picture": shown})
    titles = {"false": "False: found where there is none", "missed": "Missed"}
    parts = [(titles[kind], found) for kind, found in cards.items() if found]
    return {"parts": parts, "truth": css_colour(TRUTH), "result": css_colour(RESULT)}


def _crop_picture(fault: Fault, volumes: dict[str, Volume], box: Box) -> npt.NDArray[np.uint8]:
    """The surroundings of an error as RGB, enlarged by a whole number: it is tinted, truth and result outlined."""
    window = crop_window(fault, box)
    truth_yx, result_yx = volumes["truth"].read(window)[0] == 1, volumes["result"].read(window)[0] != 0
    grey_yx = np.full(truth_yx.shape, 0.25, np.float32)
    if "image" in volumes:
        grey_yx = stretch(volumes["image"].read(window)[0])
    scale = max(1, round(_SIDE / max(grey_yx.shape)))
    square = np.ones((scale, scale), bool)
    rgb = np.repeat(np.kron(grey_yx, square)[..., None], 3, axis=-1).astype(np.float32)
    within = np.zeros(truth_yx.shape, bool)
    within[fault.box.clip(window).inside(window).slices[1:]] = True
    wrong_yx = within & ((result_yx & ~truth_yx) if fault.kind == "false" else (truth_yx & ~result_yx))
    tint = np.kron(wrong_yx, square).astype(bool)
    rgb[tint] = 0.72 * rgb[tint] + 0.28 * np.array(FALSE if fault.kind == "false" else MISSED)
    for mask_yx, colour, depth in ((result_yx, RESULT, 2), (truth_yx, TRUTH, 1)):
        large_yx = np.kron(mask_yx, square).astype(bool)
        inner_yx = binary_erosion(large_yx, iterations=depth, border_value=1)  # the picture's frame is not a border
        rgb[large_yx & ~inner_yx] = colour
    return (255 * rgb + 0.5).astype(np.uint8)


def crop_window(fault: Fault, box: Box) -> Box:
    """A square of one slice round an error, inside the box."""
    z, *middle = fault.at
    side = int(min(max(1.6 * max(fault.box.shape[1:]), _NARROWEST), _WIDEST))
    ends = zip(middle, box.start[1:], box.stop[1:], strict=True)
    y, x = (max(low, min(centre - side // 2, high - side)) for centre, low, high in ends)
    return Box((z, y, x), (z + 1, min(y + side, box.stop[1]), min(x + side, box.stop[2])))
