"""What the viewers of the page show: slices with what was found on them, and surfaces as one small mesh.

Large slices and volumes are made small while they are read, strip by strip. Where only a mask is given, its instances
are numbered and told by size and place.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pandas import DataFrame
from PIL import Image
from scipy.ndimage import find_objects, gaussian_filter
from skimage.measure import marching_cubes

from mitoseg.evaluation.figures import FALSE, HIT, LEFT_OUT, MISSED, TRUTH, Colour, nice_length, stretch
from mitoseg.evaluation.instances import SMALL
from mitoseg.evaluation.report.markup import Content, Section, pack, picture
from mitoseg.geometry import Box, slabs, tiles
from mitoseg.metrics import IGNORE
from mitoseg.segmentation.blockwise import STARTS, STOPS, count_block, merge_counts
from mitoseg.segmentation.labelling import BLOCK, InstanceVolume
from mitoseg.volumes.base import Array, ArrayVolume, Volume, VolumeInfo

RESULT: Colour = (0.86, 0.47, 0.78)

COLOURS = {"truth": TRUTH, "result": RESULT, "hit": HIT, "false": FALSE, "missed": MISSED, "ignored": LEFT_OUT}

IN_TRUTH, IN_RESULT, NOT_COUNTED = 1, 2, 4
"""Bits of a pixel's code."""


def slices_section(content: Content) -> Section | None:
    """The viewer of slices; None without an image, labels or a result."""
    return None if content.box is None else {"data": slice_data(content, content.box)}


def css_colour(colour: Colour) -> list[int]:
    """Red, green and blue from 0 to 255."""
    return [round(255 * c) for c in colour]


def slice_data(content: Content, box: Box) -> dict[str, object]:
    """What the viewer shows, for its script.

    Returns:
        ``width`` and ``height`` in pixels, ``start`` and ``size`` in voxels (z, y, x), ``voxel_nm`` or None, ``z`` of
        each picture in voxels, ``images`` (WebP in base64), ``codes`` (a byte a pixel, bits `IN_TRUTH`, `IN_RESULT`
        and `NOT_COUNTED`) and ``ids`` (uint32), both packed (`pack`), ``layers`` that can be shown, ``colours`` and
        ``bar``: its length in voxels of x, and its text.
    """
    volumes, options = content.volumes, content.options
    shape_yx = picture_shape(box.shape[1:], options.pixels)
    at = slice_positions(box, options.slices)
    images: list[str] = []
    if "image" in volumes:
        grey_zyx = stretch(np.stack([small_image(volumes["image"], z, box, shape_yx) for z in at]))
        shown_zyx = (255 * grey_zyx + 0.5).astype(np.uint8)
        images = [base64.b64encode(picture(grey_yx, options.quality)).decode("ascii") for grey_yx in shown_zyx]
    codes, ids = [], []
    for z in at:
        codes.append(pack(_codes(volumes, z, box, shape_yx)))
        if "instances" in volumes:
            ids.append(pack(small_labels(volumes["instances"], z, box, shape_yx).astype(np.uint32)))
    return {
        "width": shape_yx[1],
        "height": shape_yx[0],
        "start": box.start,
        "size": box.shape,
        "voxel_nm": content.spacing,
        "z": at,
        "images": images,
        "codes": codes,
        "ids": ids,
        "layers": layers(volumes),
        "colours": {name: css_colour(colour) for name, colour in COLOURS.items()},
        "bar": scale_bar(box.shape[2], None if content.spacing is None else content.spacing[2]),
    }


def slice_positions(box: Box, count: int) -> list[int]:
    """Slices from first to last, evenly spread.

    >>> slice_positions(Box((10, 0, 0), (20, 5, 5)), 4)
    [10, 13, 16, 19]
    """
    first, last = box.start[0], box.stop[0] - 1
    return [int(z) for z in np.unique(np.linspace(first, last, max(1, min(count, box.shape[0]))).round().astype(int))]


def scale_bar(width: int, pixel_nm: float | None) -> dict[str, object]:
    """A bar of a round length, at most a quarter of the width: ``voxels`` and ``text``."""
    length = nice_length(0.25 * width * (pixel_nm or 1))
    if pixel_nm is None:
        return {"voxels": length, "text": f"{length:g} px"}
    text = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    return {"voxels": length / pixel_nm, "text": text}


def layers(volumes: dict[str, Volume]) -> list[str]:
    """What can be drawn over the image."""
    found = [name for name in ("truth", "result") if name in volumes]
    return [
        *(["errors"] if len(found) == 2 else []),
        *(["instances"] if "instances" in volumes else []),
        *found,
    ]


def _codes(volumes: dict[str, Volume], z: int, box: Box, shape_yx: tuple[int, int]) -> npt.NDArray[np.uint8]:
    code_yx = np.zeros(shape_yx, np.uint8)
    if "truth" in volumes:
        truth_yx = small_labels(volumes["truth"], z, box, shape_yx)
        code_yx |= np.where(truth_yx == 1, np.uint8(IN_TRUTH), np.uint8(0))
        code_yx |= np.where(truth_yx == IGNORE, np.uint8(NOT_COUNTED), np.uint8(0))
    if "result" in volumes:
        code_yx |= np.where(small_labels(volumes["result"], z, box, shape_yx) != 0, np.uint8(IN_RESULT), np.uint8(0))
    return code_yx


STRIP_VOXELS = 2**24
"""Read at once."""

Floats = npt.NDArray[np.float32]


def picture_shape(shape_yx: Sequence[int], pixels: int) -> tuple[int, int]:
    """Size of a slice whose longer side has at most so many pixels.

    >>> picture_shape((768, 1024), 768), picture_shape((30, 20), 768)
    ((576, 768), (30, 20))
    """
    scale = max(1.0, max(shape_yx) / pixels)
    height, width = (max(1, round(n / scale)) for n in shape_yx)
    return height, width


def small_image(volume: Volume, z: int, crop: Box, shape_yx: tuple[int, int]) -> Floats:
    """A slice of an image, averaged down to ``shape_yx``."""
    factor = max(1, min(n // m for n, m in zip(crop.shape[1:], shape_yx, strict=True)))
    strips = [_mean(read.astype(np.float32), factor) for _, read in _strips(volume, z, crop, factor)]
    mean_yx = np.concatenate(strips)
    if mean_yx.shape == shape_yx:
        return mean_yx
    small = Image.fromarray(mean_yx).resize(shape_yx[::-1], Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def small_labels(volume: Volume, z: int, crop: Box, shape_yx: tuple[int, int]) -> Array:
    """A slice of labels: at each pixel of ``shape_yx`` the label at its centre."""
    rows, columns = (((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(crop.shape[1:], shape_yx, strict=True))
    parts = []
    for first, strip_yx in _strips(volume, z, crop, 1):
        here = rows[(rows >= first) & (rows < first + len(strip_yx))] - first
        parts.append(strip_yx[np.ix_(here, columns)])
    return np.concatenate(parts)


def _strips(volume: Volume, z: int, crop: Box, factor: int) -> Iterator[tuple[int, Array]]:
    """Runs of rows of a slice, each a multiple of ``factor`` but the last, with their first row within the crop."""
    (y0, x0), (y1, x1) = crop.start[1:], crop.stop[1:]
    rows = max(factor, STRIP_VOXELS // max(x1 - x0, 1) // factor * factor)
    for y in range(y0, y1, rows):
        yield y - y0, volume.read(Box((z, y, x0), (z + 1, min(y + rows, y1), x1)))[0]


def _mean(image_yx: Floats, factor: int) -> Floats:
    """Means of squares; those at the far ends may be smaller."""
    if factor == 1:
        return image_yx
    sums, counts = image_yx, np.ones(1)
    for axis, length in enumerate(image_yx.shape):
        starts = np.arange(0, length, factor)
        sums = np.add.reduceat(sums, starts, axis=axis)
        counts = np.multiply.outer(counts, np.diff(np.append(starts, length)))
    result: Floats = (sums / counts[0]).astype(np.float32)
    return result


def cell_factors(voxel_size: Sequence[float], cell: float) -> tuple[int, int, int]:
    """Voxels (z, y, x) that make a cell of about ``cell``, in the unit of the voxel size.

    >>> cell_factors((50, 5, 5), 20)
    (1, 4, 4)
    """
    z, y, x = (max(1, round(cell / size)) for size in voxel_size)
    return z, y, x


def coarse_labels(
    instances: Volume, crop: Box, factors: tuple[int, int, int]
) -> tuple[Floats, npt.NDArray[np.uint32]]:
    """A volume of ids in cells.

    Args:
        instances: Ids, 0 for background.
        crop: The part that is read.
        factors: (z, y, x) voxels of a cell; those at the far ends may be smaller.

    Returns:
        The share of each cell that is foreground, and its id: the largest of those in it.
    """
    shares, labels = [], []
    for z in range(crop.start[0], crop.stop[0], factors[0]):
        stop = min(z + factors[0], crop.stop[0])
        rows = max(1, STRIP_VOXELS // max((stop - z) * crop.shape[2], 1) // factors[1]) * factors[1]
        layer = []
        for y in range(crop.start[1], crop.stop[1], rows):
            box = Box((z, y, crop.start[2]), (stop, min(y + rows, crop.stop[1]), crop.stop[2]))
            layer.append(pool(instances.read(box), factors))
        shares.append(np.concatenate([share for share, _ in layer], axis=1))
        labels.append(np.concatenate([label for _, label in layer], axis=1))
    return np.concatenate(shares), np.concatenate(labels)


def pool(
    label_zyx: Array, factors: tuple[int, int, int], share_zyx: Floats | None = None
) -> tuple[Floats, npt.NDArray[np.uint32]]:
    """Cells of an array of ids, or of cells of it with their ``share_zyx``; see `coarse_labels`."""
    share = (label_zyx != 0).astype(np.float32) if share_zyx is None else share_zyx
    label = label_zyx.astype(np.uint32, copy=False)
    for axis, (length, factor) in enumerate(zip(label_zyx.shape, factors, strict=True)):
        if factor == 1:
            continue
        starts = np.arange(0, length, factor)
        size = np.diff(np.append(starts, length)).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = len(size)
        share = np.add.reduceat(share, starts, axis=axis) / size.reshape(shape)
        label = np.maximum.reduceat(label, starts, axis=axis)
    return share, label


def cell_for(shape: Sequence[int], voxel_size: Sequence[float], cells: int) -> float:
    """The edge of a cell, at least the smallest voxel, so that a volume has about as many."""
    volume = math.prod(float(n * size) for n, size in zip(shape, voxel_size, strict=True))
    return max(float(min(voxel_size)), math.cbrt(volume / cells))


def read_where(volume: Volume, box: Box, rule: Callable[[Array], npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    """Where a rule holds, of a box whose stored values would take too much memory at once."""
    found_zyx = np.empty(box.shape, bool)
    for slab in slabs(box, max(1, STRIP_VOXELS // (4 * box.shape[1] * box.shape[2]))):
        found_zyx[slab.inside(box).slices] = rule(volume.read(slab))
    return found_zyx


CELLS = 2**23
"""Cells in which the instances are first read."""

MOST_SURFACES = 3000
"""Instances that are drawn, at most."""

SMOOTHING = 0.8  # standard deviation in cells: takes the steps of voxels away

_TRIANGLES_PER_FACE = 4 / 3  # marching cubes makes about two triangles where the faces of cells cover 1.5 of them

_PAD = 3

_QUANTA = 65534

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Surface:
    """The surface of one instance.

    Attributes:
        instance: Its id.
        vertices: (n, 3) as z, y, x in the unit of the voxel size, from the crop's corner.
        faces: (m, 3) vertices of each triangle.
    """

    instance: int
    vertices: npt.NDArray[np.float32]
    faces: npt.NDArray[np.int32]


def scene_section(content: Content) -> Section | None:
    """The scene; None without instances."""
    box = content.box
    if box is None or "instances" not in content.volumes:
        return None
    found, cell = surfaces(content, box)
    return {"data": scene_data(found, box, content), "cell": cell} if found else None


def scene_data(found: list[Surface], box: Box, content: Content) -> dict[str, object]:
    """What the scene draws, for its script.

    Returns:
        ``extent`` of the box (z, y, x), ``unit``, ``instances``, for each how many ``vertices`` and ``triangles``,
        and packed (`pack`): ``positions``, int16 z, y, x, from -32767 at one face of the box to 32767 at the other;
        ``corners``, int32, the differences of the vertices of all triangles one after the other, numbered through.
    """
    extent = np.array(box.shape) * np.array(content.spacing or (1, 1, 1), float)
    positions = np.concatenate([surface.vertices for surface in found]) / extent
    quantised = np.clip(np.rint(positions * _QUANTA - _QUANTA / 2), -32767, 32767).astype(np.int16)
    first = np.cumsum([0, *(len(surface.vertices) for surface in found)])
    corners = np.concatenate([surface.faces.ravel() + n for surface, n in zip(found, first[:-1], strict=True)])
    return {
        "extent": extent,
        "unit": "nm" if content.spacing else "voxels",
        "instances": [surface.instance for surface in found],
        "vertices": [len(surface.vertices) for surface in found],
        "triangles": [len(surface.faces) for surface in found],
        "positions": pack(quantised),
        "corners": pack(np.diff(corners.astype(np.int32), prepend=np.int32(0))),
    }


def surfaces(content: Content, box: Box) -> tuple[list[Surface], float]:
    """Surfaces of the instances in a box, with about as many triangles as the options allow.

    Returns:
        The surfaces, the largest instance first, and the edge of the cells that they were made from.
    """
    size = np.array(content.spacing or (1, 1, 1), float)
    cell = cell_for(box.shape, tuple(size), CELLS)
    factors = cell_factors(tuple(size), cell)
    share_zyx, label_zyx = coarse_labels(content.volumes["instances"], box, factors)
    size = size * factors
    budget = content.options.triangles
    found: list[Surface] = []
    for _ in range(6):
        estimate = _TRIANGLES_PER_FACE * _cell_faces(label_zyx)
        if estimate <= 1.5 * budget:
            found = [*_surfaces(share_zyx, label_zyx, size)]
            count = sum(len(surface.faces) for surface in found)
            if count <= budget or min(label_zyx.shape) < 4:
                break
            estimate = float(count)
        wanted = float(size.max()) * max(1.2, (estimate / budget) ** 0.5)
        more = cell_factors(tuple(size), wanted)
        more = more if max(more) > 1 else (2, 2, 2)
        share_zyx, label_zyx = pool(label_zyx, more, share_zyx)
        size = size * more
    limits = np.array(box.shape) * np.array(content.spacing or (1, 1, 1), float)
    inside = [Surface(s.instance, np.clip(s.vertices, 0, limits).astype(np.float32), s.faces) for s in found]
    return inside, float(size.max())


def _cell_faces(label_zyx: Ids) -> int:
    """Faces between cells of different instances, or of one and none."""
    faces = 0
    for axis in range(3):
        a, b = np.moveaxis(label_zyx, axis, 0)[:-1], np.moveaxis(label_zyx, axis, 0)[1:]
        differ = a != b
        faces += int(differ.sum()) + int((differ & (a != 0) & (b != 0)).sum())
        ends = np.moveaxis(label_zyx, axis, 0)[[0, -1]]
        faces += int((ends != 0).sum())
    return faces


def _surfaces(share_zyx: Floats, label_zyx: Ids, size: npt.NDArray[np.float64]) -> list[Surface]:
    """A surface for each instance, the largest first."""
    ids, dense_zyx = renumber(label_zyx)
    count = np.bincount(dense_zyx.ravel(), minlength=len(ids) + 1)
    where = find_objects(dense_zyx)
    largest = 1 + np.argsort(-count[1:], kind="stable")[:MOST_SURFACES]
    found = []
    for number_ in largest:
        inside = where[number_ - 1]
        if inside is None:
            continue
        own_zyx = np.where(dense_zyx[inside] == number_, share_zyx[inside], np.float32(0))
        surface = _surface(own_zyx, int(ids[number_ - 1]), [s.start for s in inside], size)
        if surface is not None:
            found.append(surface)
    return found


def _surface(own_zyx: Floats, instance: int, start: list[int], size: npt.NDArray[np.float64]) -> Surface | None:
    """The surface at half of the share; a thin instance, whose share is never that high, at half of its highest."""
    field_zyx = gaussian_filter(np.pad(own_zyx, _PAD), SMOOTHING)
    level = min(0.5, 0.5 * float(field_zyx.max()))
    if level <= 0:
        return None
    vertices, faces, _, _ = marching_cubes(field_zyx, level)  # type: ignore[no-untyped-call]
    placed = (vertices - _PAD + 0.5 + np.array(start)) * size
    return Surface(instance, placed.astype(np.float32), faces.astype(np.int32))


LARGEST_BOX = 2**28
"""Voxels whose ids are held in memory."""

SLAB_VOXELS = 2**22
"""Read at once."""


class Shifted(Volume):
    """An array that stands for one box of a volume; what lies beyond the box cannot be read.

    Args:
        array_zyx: Of the box.
        box: Where it lies.
        like: The volume whose shape and voxel size this one has.
    """

    def __init__(self, array_zyx: Array, box: Box, like: Volume) -> None:
        super().__init__(VolumeInfo(like.path, like.shape, array_zyx.dtype, like.voxel_size, {"kind": "instances"}))
        self._part, self._placed = ArrayVolume(array_zyx), box

    def read(self, box: Box | None = None) -> Array:
        """See `Volume.read`."""
        return self._part.read(self.check_box(box).inside(self._placed))


def hold(instances: Volume, box: Box | None = None, small: int = SMALL) -> Volume:
    """The ids of a box in memory, without small ones; as they are where they would take too much memory.

    Ids that are computed where they are read are computed once in this way, and not again for each slice.

    Args:
        instances: Ids from 1 to N, 0 for background.
        box: The part to hold; None: everything.
        small: Instances of fewer voxels in the box become background.
    """
    box = instances.check_box(box)
    if box.size > LARGEST_BOX:
        return instances
    few = isinstance(instances, InstanceVolume) and len(instances) < 2**16
    id_zyx = np.zeros(box.shape, np.uint16 if few else np.uint32)
    for part in tiles(box, BLOCK):
        id_zyx[part.inside(box).slices] = instances.read(part)
    voxels = np.zeros(int(id_zyx.max()) + 1, np.int64)
    for id_yx in id_zyx:  # slice by slice, as bincount makes eight bytes of each voxel
        voxels += np.bincount(id_yx.ravel(), minlength=len(voxels))
    kept = np.where(voxels >= small, np.arange(len(voxels), dtype=id_zyx.dtype), id_zyx.dtype.type(0))
    for id_yx in id_zyx:
        id_yx[:] = kept[id_yx]
    return Shifted(id_zyx, box, instances)


def plain_table(instances: Volume, box: Box, voxel_size: Sequence[float] | None) -> DataFrame:
    """Size and place of each instance in a box.

    Args:
        instances: Ids, 0 for background.
        box: The part that is read.
        voxel_size: (z, y, x) in nm; without it there is no ``volume_nm3``.

    Returns:
        ``instance``, ``voxels``, ``volume_nm3``, ``diameter_sphere_nm`` (of a ball of that volume), the box in voxels
        of the volume (``box_z0`` to ``box_x1``) and ``touches_border``: whether it reaches a face of the box.
    """
    depth = max(1, SLAB_VOXELS // (box.shape[1] * box.shape[2]))
    table = merge_counts(count_block(instances.read(slab), slab.start) for slab in slabs(box, depth))
    ends = np.hstack([table[STARTS].to_numpy() <= box.start, table[STOPS].to_numpy() >= box.stop])
    table = table.assign(touches_border=np.asarray(ends.any(axis=1)))
    if voxel_size is not None:
        volume = table["voxels"] * float(np.prod(voxel_size))
        table.insert(2, "volume_nm3", volume)
        table.insert(3, "diameter_sphere_nm", np.cbrt(6 * volume / np.pi))
    return table


def renumber(label_zyx: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The ids of an array in ascending order, and the array with 1 for the first of them and so on; 0 stays 0.

    >>> ids, dense = renumber(np.array([[[7, 0, 9]]]))
    >>> ids.tolist(), dense.tolist()
    ([7, 9], [[[1, 0, 2]]])
    """
    if int(label_zyx.max()) > max(2**16, label_zyx.size):
        ids, dense = np.unique(np.append(label_zyx, 0), return_inverse=True)
        return ids[1:].astype(np.int64), dense[:-1].reshape(label_zyx.shape).astype(np.int32)
    there = np.zeros(int(label_zyx.max()) + 1, bool)  # far faster than sorting all voxels
    there[label_zyx] = True
    there[0] = False
    numbers = np.where(there, np.cumsum(there), 0).astype(np.int32)
    return np.flatnonzero(there).astype(np.int64), numbers[label_zyx]
