r"""A few painted regions of one or several volumes, as data to fine-tune on, and in parts that are left out in turn.

What is painted may be a whole slice, a box, or scribbles. Painted voxels are 0 background, 1 mitochondrion, all others
`IGNORE`. Regions that lie closer together than a mitochondrion is wide show the same ones: they make one group. With
three groups or more, whole groups are left out; fewer are cut into strips, so that something can be left out:

    three groups         z 3 |AAAAAA|   z 40 |BBBBBB|   z 90 |CCCCCC|
    one group, strips    z 3 |AABBCC|   z 5  |AABBCC|   a strip along the longer of y and x
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mitoseg.datasets.base import IGNORE, Region, Splits
from mitoseg.datasets.domains import ChosenVolume
from mitoseg.datasets.download import file_of, fingerprint
from mitoseg.errors import UserError, as_path
from mitoseg.geometry import Box
from mitoseg.volumes import Normalization, check_same_shape, measure_normalization, open_volume
from mitoseg.volumes.base import Array, DerivedVolume, ElementwiseVolume, Volume, thin_slabs
from mitoseg.volumes.labels import MARKERS, LabelVolume, label_values, map_labels
from mitoseg.volumes.padding import with_padding
from mitoseg.volumes.resampling import resampled

_log = logging.getLogger(__name__)
Labels = npt.NDArray[np.uint8]
CELL = 16
"""Side (y, x) of the cells in which painted voxels are looked for."""
PARTS = 3
"""Strips that too few groups are cut into."""
WIDTH = 500.0
"""Of a mitochondrion in nm, where too few are painted to measure it."""


@dataclass(frozen=True)
class Meaning:
    """Which label values are mitochondria and which are background, of one file.

    ``foreground`` None: all others than 0 that have no other meaning; ``background`` are values besides the 0 of what
    is reviewed; ``unknown`` counts nowhere.
    """

    foreground: tuple[int, ...] | None = None
    background: tuple[int, ...] = ()
    unknown: tuple[int, ...] = ()

    def apply(self, stored: Array, reviewed: npt.NDArray[np.bool_], inside: npt.NDArray[np.bool_] | None) -> Labels:
        """Labels of some voxels, of which ``reviewed`` says where a 0 means background.

        ``inside`` are mitochondria where ``foreground`` is None.
        """
        if inside is None:
            inside = np.isin(stored, self.foreground or ())
        outside = np.isin(stored, self.background) | (reviewed & ~inside & ~np.isin(stored, self.unknown))
        return np.where(inside, np.uint8(1), np.where(outside, np.uint8(0), np.uint8(IGNORE)))


@dataclass(frozen=True)
class Painted:
    """A painted region: its ``box`` (z, y, x) in an image, and ``label_zyx`` in it, uint8 0, 1 and `IGNORE`."""

    image: Volume
    box: Box
    label_zyx: Labels
    group: int = 0

    @property
    def name(self) -> str:
        """The image's file and the box."""
        return f"{os.path.basename(self.image.path)} {self.box}"

    def cut(self, box: Box) -> Painted:
        """The part that lies in a box."""
        part = self.box.clip(box)
        return replace(self, box=part, label_zyx=self.label_zyx[part.inside(self.box).slices])


def read_painted(
    image: Volume,
    label: Volume,
    *,
    reviewed: object = None,
    foreground: object = None,
    background: object = None,
    unknown: object = None,
    marks: bool | None = None,
    slices: Sequence[int] | None = None,
) -> list[Painted]:
    """Find the painted regions of an image.

    Values are mitochondria, but 0. A 2 is background in a file that has no other values than 0, 1 and 2, and is no
    result with ids. A 0 is background where it is reviewed, else unknown. Where nothing says what background is, every
    slice that holds a mitochondrion is taken as reviewed.

    Args:
        image: Grey values.
        label: What was painted, of the same shape.
        reviewed: ``all``, slices such as ``[3, 7]``, boxes such as ``["[3:4,0:256,0:256]"]``, or the name of a CSV of
            a Shapes layer of napari.
        foreground: The values of mitochondria, one or a list; None: as above.
        background: The values of background.
        unknown: The values that count nowhere.
        marks: Whether a 2 is background; None: as above.
        slices: The only ones with anything but 0 in them, of which alone labels are read; None: all are read.

    Raises:
        UserError: The shapes differ, or the values make no sense.
    """
    check_same_shape(image, label)
    label, image = label.as_labels(), with_padding(image, "auto")
    if label.dtype.kind not in "bui":
        raise UserError("the labels hold no whole numbers", label.path, "save what is painted as integers")
    meaning = Meaning(label_values(foreground), label_values(background) or (), label_values(unknown) or ())
    named = [*(meaning.foreground or ()), *meaning.background, *meaning.unknown]
    if twice := [value for value in set(named) if named.count(value) > 1]:
        raise UserError("a label value has two meanings", twice[0], "give it to foreground=, background= or unknown=")
    values, present = _values(label, named, slices)
    if marks is None:
        marks = foreground is None and background is None and _has_marks(label, values, meaning.unknown)
    if marks:
        meaning = replace(meaning, foreground=(1,), background=(2,))
        _log.info("%s: 1 is mitochondrion, 2 background, 0 unknown", label.path)
    if not (values - {0, *meaning.unknown}):
        raise UserError("no mitochondrion is painted", label.path, "paint some with the value 1")
    if meaning.foreground is not None:
        if label.lossy:
            raise UserError("the labels are compressed with loss, which changes values", label.path, "save PNG files")
        wanted = {*meaning.foreground, *meaning.background}
        if not values & wanted:
            what = f"none of the values {sorted(wanted)} that are named is in the labels"
            raise UserError(what, label.path, f"they hold {sorted(values)[:10]}")
        if absent := sorted(() if marks else wanted - values):
            _log.warning("%s: the labels hold no %s", label.path, ", ".join(map(str, absent)))
    boxes = reviewed_boxes(reviewed, image.shape)
    if not boxes and not meaning.background:
        _log.info(
            "%s: no background is painted and reviewed= is not given: taking slices with mitochondria as reviewed",
            label.path,
        )
        boxes = [Box((z, 0, 0), (z + 1, *image.shape[1:])) for z in np.flatnonzero(present).tolist()]
    mapped = None if meaning.foreground is not None else _mapped(label, {*named} & values - {0})
    top = max(values - {*named}, default=0)
    if mapped is not None and mapped.numbered and top in MARKERS and len(values) <= 64 and top - 1 not in values:
        remedy = f"give unknown={top}, or name those of mitochondria with foreground="
        raise UserError(f"the value {top} beside others may mean unknown or a mitochondrion", label.path, remedy)
    regions = list(_regions(image, label, mapped, meaning, boxes, present))
    if not regions:
        raise UserError("all that is painted is in the padding of the image", label.path, "paint tissue")
    return regions


def _has_marks(label: Volume, values: set[int], unknown: Sequence[int]) -> bool:
    """Whether 1 and 2 are painted, for mitochondria and background."""
    return {1, 2} <= values - {*unknown} <= {0, 1, 2} and label.info.metadata.get("kind") != "instances"


def _mapped(label: Volume, marked: set[int]) -> LabelVolume:
    """Masks and instances as 0 and 1, by the rule of all commands; values that are ``marked`` are neither."""
    if label.info.metadata.get("kind") == "probability":
        raise UserError("probabilities instead of labels", label.path, "predict with save=mask, or paint")
    one = min(marked, default=None)
    if one is not None:
        label = ElementwiseVolume(label, lambda stored: np.where(np.isin(stored, [*marked]), one, stored))
    try:
        return map_labels(label, ignore_label=one, require_foreground=False)
    except UserError as error:
        remedy = "name what the values mean with foreground=, background= and unknown="
        raise UserError(error.what, error.value, error.remedy if label.lossy else remedy) from error


def _values(
    label: Volume, named: Sequence[int] = (), slices: Sequence[int] | None = None
) -> tuple[set[int], npt.NDArray[np.bool_]]:
    """The values that occur (those ``named`` and a few more tell enough), and whether each slice has one but 0."""
    values: set[int] = set()
    present = np.zeros(label.shape[0], np.bool_)
    planes = [Box((z, 0, 0), (z + 1, *label.shape[1:])) for z in slices or ()]
    for slab in thin_slabs(label.box) if slices is None else planes:
        stored_zyx = label.read(slab)
        present[slab.start[0] : slab.stop[0]] = stored_zyx.any((1, 2))
        found = pd.unique(stored_zyx.ravel())
        values |= {int(value) for value in found[:65536]} | {value for value in named if (found == value).any()}
    return values, present


def reviewed_boxes(given: object, shape: Sequence[int]) -> list[Box]:
    """The boxes that are completely annotated, from any of the forms of ``reviewed=``."""
    Z, Y, X = shape
    if given is None:
        return []
    if given == "all":
        return [Box.of_shape(shape)]
    if isinstance(given, str) and given.lower().endswith(".csv"):
        return _shapes(given, shape)
    found = []
    for item in given if isinstance(given, Sequence) and not isinstance(given, str) else [given]:
        if isinstance(item, int) and not isinstance(item, bool):
            if not 0 <= item < Z:
                raise UserError("there is no such slice to be reviewed", item, f"give reviewed= from 0 to {Z - 1}")
            found.append(Box((item, 0, 0), (item + 1, Y, X)))
        else:
            found.append(Box.parse(item, shape))
    return found


def _shapes(path: str, shape: Sequence[int]) -> list[Box]:
    """The rectangles of a Shapes layer as napari saves it: a row a corner, its axes last."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError("cannot read the boxes", path, "save the Shapes layer of napari as CSV") from error
    axes = [name for name in table.columns if name.startswith("axis-")][-3:]
    if "index" not in table or len(axes) < 2 or table[axes].isna().to_numpy().any() or not len(table):
        raise UserError("this is no Shapes layer of napari", path, "save it as CSV, with rectangles in it")
    found = []
    for _, corners in table.groupby("index"):
        low, high = (getattr(corners[axes], name)().to_numpy() for name in ("min", "max"))
        start = [0] * (3 - len(axes)) + np.floor(low + 0.5).astype(int).tolist()
        stop = [1] * (3 - len(axes)) + np.floor(high + 0.5).astype(int).tolist()
        stop[0] = max(stop[0], start[0] + 1)
        box = Box(tuple(max(0, a) for a in start), tuple(max(0, b) for b in stop)).clip(Box.of_shape(shape))
        if box.size:
            found.append(box)
    if not found:
        raise UserError("no box of the Shapes layer lies in the volume", path, f"it has {tuple(shape)} voxels")
    return found


def _regions(
    image: Volume,
    label: Volume,
    mapped: Volume | None,
    meaning: Meaning,
    boxes: Sequence[Box],
    present: npt.NDArray[np.bool_],
) -> Iterator[Painted]:
    """Connected parts of the painted voxels, slice by slice, each in its bounding box."""
    padding = image.padding
    for z in range(image.shape[0]):
        plane = Box((z, 0, 0), (z + 1, *image.shape[1:]))
        here = [part for box in boxes if (part := box.clip(plane)).size]
        if not present[z] and not here:
            continue
        reviewed = np.zeros(plane.shape, np.bool_)
        for part in here:
            reviewed[part.inside(plane).slices] = True
        label_zyx = meaning.apply(label.read(plane), reviewed, None if mapped is None else mapped.read(plane) == 1)
        padded = None if padding is None else padding.find(plane)
        if padded is not None:
            label_zyx[padded] = IGNORE
        for box in _parts(label_zyx[0] != IGNORE):
            whole = Box((z, *box.start), (z + 1, *box.stop))
            yield Painted(image, whole, label_zyx[whole.inside(plane).slices].copy())


def _parts(known_yx: npt.NDArray[np.bool_]) -> list[Box]:
    """Bounding boxes of known pixels that are less than two cells apart; boxes that overlap are one."""
    Y, X = (-(-n // CELL) for n in known_yx.shape)
    padded = np.zeros((Y * CELL, X * CELL), np.bool_)
    padded[: known_yx.shape[0], : known_yx.shape[1]] = known_yx
    cells = padded.reshape(Y, CELL, X, CELL).any((1, 3))
    label_yx = cc3d.connected_components(ndimage.binary_dilation(cells, np.ones((3, 3))), connectivity=8)
    boxes: list[Box] = []
    for rows, columns in ndimage.find_objects(label_yx):
        window = Box((rows.start * CELL, columns.start * CELL), (rows.stop * CELL, columns.stop * CELL))
        window = window.clip(Box.of_shape(known_yx.shape))
        y, x = np.nonzero(known_yx[window.slices])
        box = Box((int(y.min()), int(x.min())), (int(y.max()) + 1, int(x.max()) + 1)).shift(window.start)
        while others := [other for other in boxes if other.clip(box).size]:
            boxes = [other for other in boxes if other not in others]
            ends = [box, *others]
            box = Box(tuple(map(min, *(b.start for b in ends))), tuple(map(max, *(b.stop for b in ends))))
        boxes.append(box)
    return boxes


def mitochondrion_width(regions: Sequence[Painted]) -> float:
    """The median width in nm of the painted mitochondria in y and x, twice the largest distance to their outlines."""
    widths = []
    for region in regions:
        size = region.image.voxel_size or (5.0, 5.0, 5.0)
        inside = np.pad(region.label_zyx[0] == 1, 1, constant_values=False)
        distance = ndimage.distance_transform_edt(inside, size[1:])
        found = cc3d.connected_components(inside, connectivity=4)
        if (count := int(found.max())) > 0:
            widths += (2 * np.asarray(ndimage.maximum(distance, found, range(1, count + 1)))).tolist()
    return float(np.median(widths)) if len(widths) >= 3 else WIDTH


def grouped(regions: Sequence[Painted]) -> list[Painted]:
    """The regions with the number of their group: those of an image that are closer than a mitochondrion's width."""
    width = mitochondrion_width(regions)
    margins = [[math.ceil(width / step) for step in r.image.voxel_size or (5.0, 5.0, 5.0)] for r in regions]
    pairs = np.array([*_near(regions, margins)], np.int64).reshape(-1, 2)
    near = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(regions),) * 2)
    _, group = connected_components(near, directed=False)
    return [replace(region, group=int(number)) for region, number in zip(regions, group, strict=True)]


def _near(regions: Sequence[Painted], margins: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """The pairs (later, earlier) of regions of an image of which one, with a margin, overlaps the other."""
    paths = np.unique([region.image.path for region in regions], return_inverse=True)[1]
    start, stop = (np.array([getattr(region.box, end) for region in regions]) for end in ("start", "stop"))
    for i, margin in enumerate(margins):
        touching = ((start[i] - margin < stop[:i]) & (start[:i] < stop[i] + margin)).all(1)
        yield from ((i, int(j)) for j in np.flatnonzero(touching & (paths[:i] == paths[i])))


def counted_once(regions: Sequence[Painted]) -> list[Painted]:
    """The regions without what an earlier one paints as well; two that disagree are refused."""
    for later, earlier in _near(regions, [(0, 0, 0)] * len(regions)):
        a, b = regions[later], regions[earlier]
        common = a.box.clip(b.box)
        new, old = (region.label_zyx[common.inside(region.box).slices] for region in (a, b))
        both = (new != IGNORE) & (old != IGNORE)
        if (new != old)[both].any():
            what = "voxels are mitochondrion in one file of labels and background in another"
            raise UserError(what, f"{a.image.path} {common}", "paint each place in one file, or name reviewed=")
        new[both] = IGNORE
    return [region for region in regions if (region.label_zyx != IGNORE).any()]


def parts_to_leave_out(regions: Sequence[Painted], most: int = PARTS) -> list[list[Painted]]:
    """The regions in two parts or more, each of which can be left out: whole groups, or strips of them.

    Parts hold about as many painted voxels each; a part without mitochondria joins the next.
    """
    groups = {region.group for region in regions}
    if len(groups) >= PARTS:
        pieces = [[region for region in regions if region.group == group] for group in sorted(groups)]
    else:
        cut = [strips(region, most) for region in regions]
        pieces = [
            [strip for strip in strips if (strip.label_zyx != IGNORE).any()] for strips in zip(*cut, strict=True)
        ]
    parts: list[list[Painted]] = [[] for _ in range(min(most, len(pieces)))]
    for piece in sorted(pieces, key=_known, reverse=True):
        min(parts, key=_known).extend(piece)
    found: list[list[Painted]] = []
    for part in sorted(parts, key=lambda part: sum(int((region.label_zyx == 1).sum()) for region in part)):
        if found and not any((region.label_zyx == 1).any() for region in found[-1]):
            found[-1] += part
        else:
            found.append(part)
    if len(found) < 2 or not any((region.label_zyx == 1).any() for region in found[-1]):
        remedy = "paint mitochondria in two places, or some more slices"
        raise UserError("too little is painted to leave a part of it out", len(regions), remedy)
    return found


def _known(part: Sequence[Painted]) -> int:
    return sum(int((region.label_zyx != IGNORE).sum()) for region in part)


def strips(region: Painted, count: int) -> list[Painted]:
    """A region cut into strips along the longer of y and x, each with as much paint.

    Mitochondria weigh as much as all painted voxels do, so that at least two of three strips hold some.
    """
    axis = 1 if region.box.shape[1] >= region.box.shape[2] else 2
    masses = [np.cumsum(mask.sum(axis=(0, 3 - axis))) for mask in (region.label_zyx != IGNORE, region.label_zyx == 1)]
    known = np.sum([mass / max(1, mass[-1]) for mass in masses], axis=0)
    cuts = [0, *(int(np.searchsorted(known, known[-1] * i / count)) for i in range(1, count)), len(known)]
    first = region.box.start[axis]
    strips = []
    for low, high in pairwise(cuts):
        start, stop = list(region.box.start), list(region.box.stop)
        start[axis], stop[axis] = first + low, first + max(low, high)
        strips.append(region.cut(Box(tuple(start), tuple(stop))))
    return strips


class PlacedLabels(DerivedVolume):
    """The labels of some regions in their image's coordinates: `IGNORE` elsewhere, and in the boxes ``without``."""

    def __init__(self, image: Volume, regions: Sequence[Painted], without: Sequence[Box] = ()) -> None:
        super().__init__(image, dtype=np.dtype(np.uint8))
        self.padding = None
        self._regions, self._without = list(regions), list(without)

    def _read(self, box: Box) -> Labels:
        label_zyx = np.full(box.shape, IGNORE, np.uint8)
        for region in self._regions:
            part = region.box.clip(box)
            if part.size:
                there = label_zyx[part.inside(box).slices]
                np.copyto(there, region.label_zyx[part.inside(region.box).slices], where=there == IGNORE)
        for left_out in self._without:
            part = left_out.clip(box)
            if part.size:
                label_zyx[part.inside(box).slices] = IGNORE
        return label_zyx


@dataclass(frozen=True)
class PaintedRecipe:
    """The recipe of a data module: train on ``regions`` but for what is near the ``left_out``.

    Images are resampled to ``pixel_size`` nm (y, x; None: as they are), and training boxes reach ``margin`` pixels
    beyond the paint, and to at least ``tile`` pixels. With several images each is normalised by its own statistics.
    """

    regions: Sequence[Painted]
    left_out: Sequence[Painted] = ()
    pixel_size: tuple[float, float] | None = None
    tile: int = 256
    margin: int = 0
    statistics: dict[str, Normalization] = field(default_factory=dict)

    def prepare(self) -> None:
        """Nothing to do."""

    @property
    def normalization(self) -> Normalization:
        """How the network's images are normalised: of one image, its own statistics; of several, they already are."""
        found = list(self.statistics.values())
        return found[0] if len(found) == 1 else Normalization(0.0, 1.0)

    def seen(self, image: Volume) -> Volume:
        """An image as the network sees it."""
        if len(self.statistics) > 1:
            image = ElementwiseVolume(image, self.statistics[image.path].apply, dtype=np.dtype(np.float32))
        if self.pixel_size is None or image.voxel_size is None:
            return image
        return resampled(image, (image.voxel_size[0], *self.pixel_size))

    def splits(self) -> Splits:
        """Training regions, and the same ones, as painted, for the validation that ends a training."""
        images = {region.image.path: region.image for region in self.regions}
        train, validation = [], []
        for path, image in images.items():
            mine = [region for region in self.regions if region.image.path == path]
            width = mitochondrion_width(mine) / (image.voxel_size or (5.0, 5.0, 5.0))[1]
            near = [(other.box, math.ceil(min(width, min(other.box.shape[1:]) / 4))) for other in self.left_out
                    if other.image.path == path]  # fmt: skip
            for share in (1, 0.5, 0.25, 0):  # less where too little paint would be left to learn from
                without = [box.grow((0, round(gap * share), round(gap * share))) for box, gap in near]
                label: Volume = PlacedLabels(image, mine, without)
                kept = [label.read(region.box) for region in mine]
                if all(any((part == value).any() for part in kept) for value in (0, 1)):
                    break
            seen = self.seen(image)
            scale = [new / old for new, old in zip(seen.shape, image.shape, strict=True)]
            if seen.shape != image.shape:
                places = [np.minimum((np.arange(n) + 0.5) / f, m - 1).astype(np.int64)
                          for n, f, m in zip(seen.shape, scale, image.shape, strict=True)]  # fmt: skip
                label = ChosenVolume(label, image.box, places)
            for part in stacked([region.box for region in mine]):
                low = tuple(math.floor(a * f) for a, f in zip(part.start, scale, strict=True))
                high = tuple(max(a + 1, math.ceil(b * f)) for a, b, f in zip(low, part.stop, scale, strict=True))
                box = Box(low, high).clip(seen.box)
                if (label.read(box) != IGNORE).any():
                    train.append(Region(seen, label, self._grown(box, seen.box), str(part)))
                    validation.append(Region(seen, label, box, str(part)))
        size = train[0].image.voxel_size if train else None
        about: dict[str, Any] = {
            "name": "painted",
            "files": [{"role": "train.image", **fingerprint(p)} for p in images if file_of(p).exists()],
            "regions": [region.name for region in self.regions],
            "labels_sha256": self.digest(),
            "pixel_size": self.pixel_size,
        }
        return Splits(tuple(train), tuple(validation), (), size, about, self.normalization)

    def digest(self) -> str:
        """A checksum of all that is painted, and where."""
        found = hashlib.sha256()
        for region in self.regions:
            found.update(region.name.encode() + np.ascontiguousarray(region.label_zyx).tobytes())
        return found.hexdigest()

    def _grown(self, box: Box, whole: Box) -> Box:
        """A box with the margin around it, of at least a tile, inside the image."""
        start, stop = list(box.start), list(box.stop)
        for axis in (1, 2):
            most = whole.stop[axis]
            side = min(most, max(self.tile, box.shape[axis] + 2 * self.margin))
            start[axis] = max(0, min((box.start[axis] + box.stop[axis] - side) // 2, most - side))
            stop[axis] = start[axis] + side
        return Box(tuple(start), tuple(stop))


def stacked(boxes: Sequence[Box]) -> list[Box]:
    """The boxes, those that lie one upon the other in z as one."""
    found: list[Box] = []
    for box in sorted(boxes, key=lambda box: (box.start[1:], box.stop[1:], box.start[0])):
        before = found[-1] if found else None
        if before is not None and (before.start[1:], before.stop) == (box.start[1:], (box.start[0], *box.stop[1:])):
            found[-1] = Box(before.start, box.stop)
        else:
            found.append(box)
    return found


def own_statistics(regions: Sequence[Painted]) -> dict[str, Normalization]:
    """Mean and standard deviation of each image."""
    images = {region.image.path: region.image for region in regions}
    return {path: measure_normalization([(image, image.box)]) for path, image in images.items()}


def open_painted(
    images: Sequence[str | Volume],
    labels: Sequence[str | Volume],
    *,
    reviewed: object = None,
    axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
    **meaning: Any,  # noqa: ANN401 (those of `read_painted`)
) -> list[Painted]:
    """The painted regions of several volumes, grouped; options as of `read_painted`.

    One image may have several labels; several images have one each. ``reviewed`` is for all, unless it is a list with
    an entry for each, such as ``[[3], [3, 7]]``.
    """
    if len(images) == 1:
        images = [images[0]] * len(labels)
    if len(images) != len(labels) or not labels:
        raise UserError(f"{len(images)} images and {len(labels)} labels", None, "give as many, in the same order")
    each: Sequence[object] = [reviewed] * len(labels)
    if isinstance(reviewed, Sequence) and len(labels) == len(reviewed) and not all(map(_is_place, reviewed)):
        each = reviewed
    opened: dict[str, Volume] = {}
    pairs = []
    for pair in zip(images, labels, strict=True):
        for given in pair:
            if not isinstance(given, Volume) and as_path(given) not in opened:
                opened[given] = open_volume(given, axes=axes, voxel_size=voxel_size)
        pairs.append([given if isinstance(given, Volume) else opened[given] for given in pair])
    if len({image.voxel_size is None for image, _ in pairs}) > 1:
        raise UserError("only some of the images have a voxel size", None, "give voxel_size=[z,y,x] in nm")
    marks = _agreed([label for _, label in pairs], **meaning)
    regions: list[Painted] = []
    for (image, label), marked in zip(pairs, each, strict=True):
        regions += read_painted(image, label, reviewed=marked, marks=marks, **meaning)
    regions = counted_once(regions)
    classes = [sum(int((region.label_zyx == value).sum()) for region in regions) for value in (0, 1)]
    remedies = "paint background with the value 2, or name complete slices with reviewed=[3,7]", "paint some with 1"
    for name, count, remedy in zip(("background", "mitochondrion"), classes, remedies, strict=True):
        if not count:
            raise UserError(f"no {name} is painted", None, remedy)
    return grouped(regions)


def _is_place(item: object) -> bool:
    """Whether an entry of ``reviewed=`` is a slice or a box, not what is reviewed of a whole file."""
    if isinstance(item, str):
        return item != "all" and not item.lower().endswith(".csv")
    if isinstance(item, Sequence):  # what Hydra makes of a bracketed box
        return bool(item) and all(isinstance(axis, str) and "," not in axis for axis in item)
    return isinstance(item, int)


def _agreed(labels: Sequence[Volume], *, unknown: object = None, **named: object) -> bool | None:
    """Whether a 2 is background in all of several files, also in those that have no 1; None: in some, or in none."""
    if len(labels) == 1 or any(value is not None for value in named.values()):
        return None
    ignored = label_values(unknown) or ()
    whole = [label for label in map(Volume.as_labels, labels) if label.dtype.kind in "bui"]
    values = [_values(label)[0] for label in whole]
    marked = [_has_marks(*found, ignored) for found in zip(whole, values, strict=True)]
    if not any(marked):
        return None
    if set().union(*values) - {*ignored} <= {0, 1, 2}:
        return True
    one = whole[marked.index(True)].path
    _log.warning("%s: 1 is mitochondrion and 2 background, but not in all of the files", one)
    return None
