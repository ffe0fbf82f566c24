"""What the viewers of the page show: slices with what was found on them, and surfaces as one small mesh.

Large slices and volumes are made small while they are read, strip by strip.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pandas import DataFrame
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.measure import marching_cubes

from mitoseg.evaluation.figures import FALSE, HIT, LEFT_OUT, MISSED, TRUTH, Colour, bar_length, stretch
from mitoseg.evaluation.instances import SMALL
from mitoseg.evaluation.report.markup import Content, Section, pack, picture
from mitoseg.geometry import Box, slabs, tiles
from mitoseg.metrics import IGNORE
from mitoseg.segmentation.blockwise import STARTS, STOPS, count_block, merge_counts
from mitoseg.segmentation.labelling import BLOCK, InstanceVolume
from mitoseg.volumes.base import Array, ArrayVolume, Volume, VolumeInfo

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]
Factors = tuple[int, int, int]

RESULT: Colour = (0.86, 0.47, 0.78)
COLOURS = {"truth": TRUTH, "result": RESULT, "hit": HIT, "false": FALSE, "missed": MISSED, "ignored": LEFT_OUT}

IN_TRUTH, IN_RESULT, NOT_COUNTED = 1, 2, 4  # bits of a pixel's code
STRIP_VOXELS = 2**24  # read at once
SLAB_VOXELS = 2**22  # counted at once
LARGEST_BOX = 2**28  # voxels whose ids are held in memory
CELLS = 2**23  # cells in which the instances are first read
MOST_SURFACES = 3000  # instances that are drawn, at most
SMOOTHING = 0.8  # standard deviation in cells: takes the steps of voxels away
_TRIANGLES_PER_FACE = 4 / 3  # marching cubes makes about two triangles where the faces of cells cover 1.5 of them
_PAD = 3
_QUANTA = 65534


def css_colour(colour: Colour) -> list[int]:
    """Red, green and blue from 0 to 255."""
    return [round(255 * c) for c in colour]


def slices_section(content: Content) -> Section | None:
    """The viewer of slices; None without an image, labels or a result.

    Its script is given ``width`` and ``height`` in pixels, ``start`` and ``size`` in voxels (z, y, x), ``voxel_nm`` or
    None, ``z`` of each picture in voxels, ``images`` (WebP in base64), ``codes`` (a byte a pixel, bits `IN_TRUTH`,
    `IN_RESULT` and `NOT_COUNTED`) and ``ids`` (uint32), both packed (`pack`), ``layers`` that can be shown,
    ``colours`` and ``bar``: its length in voxels of x, and its text.
    """
    box, volumes, options = content.box, content.volumes, content.options
    if box is None:
        return None
    scale = max(1.0, max(box.shape[1:]) / options.pixels)
    shape_yx = max(1, round(box.shape[1] / scale)), max(1, round(box.shape[2] / scale))
    first, last, count = box.start[0], box.stop[0] - 1, max(1, min(options.slices, box.shape[0]))
    at = [int(z) for z in np.unique(np.linspace(first, last, count).round().astype(int))]
    images: list[str] = []
    if "image" in volumes:
        grey_zyx = stretch(np.stack([small_image(volumes["image"], z, box, shape_yx) for z in at]))
        shown_zyx = (255 * grey_zyx + 0.5).astype(np.uint8)
        images = [base64.b64encode(picture(grey_yx, options.quality)).decode("ascii") for grey_yx in shown_zyx]
    codes, ids = [], []
    for z in at:
        small = {name: small_labels(volumes[name], z, box, shape_yx) for name in volumes if name != "image"}
        code_yx = np.zeros(shape_yx, np.uint8)
        if "truth" in small:
            code_yx |= IN_TRUTH * (small["truth"] == 1).astype(np.uint8)
            code_yx |= NOT_COUNTED * (small["truth"] == IGNORE).astype(np.uint8)
        if "result" in small:
            code_yx |= IN_RESULT * (small["result"] != 0).astype(np.uint8)
        codes.append(pack(code_yx))
        if "instances" in small:
            ids.append(pack(small["instances"].astype(np.uint32)))
    layers = ["errors"] if {"truth", "result"} <= volumes.keys() else []
    layers += [name for name in ("instances", "truth", "result") if name in volumes]
    bar = dict(zip(("voxels", "text"), bar_length(box.shape[2], content.spacing and content.spacing[2]), strict=True))
    colours = {name: css_colour(colour) for name, colour in COLOURS.items()}
    about: dict[str, object] = {"width": shape_yx[1], "height": shape_yx[0], "start": box.start, "size": box.shape}
    about |= {"voxel_nm": content.spacing, "z": at, "images": images, "codes": codes, "ids": ids}
    return {"data": {**about, "layers": layers, "colours": colours, "bar": bar}}


def small_image(volume: Volume, z: int, crop: Box, shape_yx: tuple[int, int]) -> Floats:
    """A slice of an image, averaged down to ``shape_yx``."""
    factor = max(1, min(n // m for n, m in zip(crop.shape[1:], shape_yx, strict=True)))
    strips = [Image.fromarray(strip_yx.astype(np.float32)) for _, strip_yx in _strips(volume, z, crop, factor)]
    mean_yx = np.concatenate([np.asarray(strip.reduce(factor)) for strip in strips])
    if mean_yx.shape == shape_yx:
        return mean_yx
    return np.asarray(Image.fromarray(mean_yx).resize(shape_yx[::-1], Image.Resampling.BOX), np.float32)


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


def coarse_labels(instances: Volume, crop: Box, factors: Factors) -> tuple[Floats, Ids]:
    """A volume of ids in cells of so many voxels (z, y, x); those at the far ends may be smaller.

    Gives the share of each cell that is foreground, and its id: the largest of those in it.
    """
    shape = [-(-n // f) for n, f in zip(crop.shape, factors, strict=True)]
    share_zyx, label_zyx = np.empty(shape, np.float32), np.empty(shape, np.uint32)
    rows = max(1, STRIP_VOXELS // max(factors[0] * crop.shape[2], 1) // factors[1]) * factors[1]
    for part in tiles(crop, (factors[0], rows, max(1, crop.shape[2]))):
        inside = part.inside(crop)
        ends = zip(inside.start, inside.stop, factors, strict=True)
        cells = tuple(slice(a // f, -(-b // f)) for a, b, f in ends)
        share_zyx[cells], label_zyx[cells] = pool(instances.read(part), factors)
    return share_zyx, label_zyx


def pool(label_zyx: Array, factors: Factors, share_zyx: Floats | None = None) -> tuple[Floats, Ids]:
    """Cells of an array of ids, or of cells of it with their ``share_zyx``; see `coarse_labels`."""
    share = (label_zyx != 0).astype(np.float32) if share_zyx is None else share_zyx
    label = label_zyx.astype(np.uint32, copy=False)
    for axis, (length, factor) in enumerate(zip(label_zyx.shape, factors, strict=True)):
        if factor == 1:
            continue
        starts = np.arange(0, length, factor)
        size = np.diff(np.append(starts, length)).astype(np.float32)
        share = np.add.reduceat(share, starts, axis=axis) / np.expand_dims(size, [a for a in range(3) if a != axis])
        label = np.maximum.reduceat(label, starts, axis=axis)
    return share, label


@dataclass(frozen=True)
class Surface:
    """Vertices (n, 3) of one instance as z, y, x in nm from the crop's corner, and faces (m, 3) of them."""

    instance: int
    vertices: Floats
    faces: npt.NDArray[np.int32]


def scene_section(content: Content) -> Section | None:
    """The scene; None without instances.

    Its script is given ``extent`` of the box (z, y, x), ``unit``, ``instances``, for each how many ``vertices`` and
    ``triangles``, and packed (`pack`): ``positions``, int16 z, y, x, from -32767 at one face of the box to 32767 at
    the other; ``corners``, int32, the differences of the vertices of all triangles one after the other, numbered
    through.
    """
    box = content.box
    if box is None or "instances" not in content.volumes:
        return None
    found, cell = surfaces(content, box)
    if not found:
        return None
    extent = np.array(box.shape) * np.array(content.spacing or (1, 1, 1), float)
    positions = np.concatenate([surface.vertices for surface in found]) / extent
    quantised = np.clip(np.rint(positions * _QUANTA - _QUANTA / 2), -32767, 32767).astype(np.int16)
    first = np.cumsum([0, *(len(surface.vertices) for surface in found)])
    corners = np.concatenate([surface.faces.ravel() + n for surface, n in zip(found, first[:-1], strict=True)])
    data = {
        "extent": extent,
        "unit": "nm" if content.spacing else "voxels",
        "instances": [surface.instance for surface in found],
        "vertices": [len(surface.vertices) for surface in found],
        "triangles": [len(surface.faces) for surface in found],
        "positions": pack(quantised),
        "corners": pack(np.diff(corners.astype(np.int32), prepend=np.int32(0))),
    }
    return {"data": data, "cell": cell}


def surfaces(content: Content, box: Box) -> tuple[list[Surface], float]:
    """Surfaces of the instances in a box, the largest first, and the edge of the cells that they were made from.

    They have about as many triangles as the options allow.
    """
    size, budget = np.array(content.spacing or (1, 1, 1), float), content.options.triangles
    limits = np.array(box.shape) * size
    factors = _factors(size, max(float(size.min()), math.cbrt(math.prod(limits.tolist()) / CELLS)))
    share_zyx, label_zyx = coarse_labels(content.volumes["instances"], box, factors)
    size = size * factors
    found: list[Surface] = []
    for _ in range(6):
        estimate = _TRIANGLES_PER_FACE * _cell_faces(label_zyx)
        if estimate <= 1.5 * budget:
            found = _surfaces(share_zyx, label_zyx, size)
            count = sum(len(surface.faces) for surface in found)
            if count <= budget or min(label_zyx.shape) < 4:
                break
            estimate = float(count)
        more = _factors(size, float(size.max()) * max(1.2, (estimate / budget) ** 0.5))
        more = more if max(more) > 1 else (2, 2, 2)
        share_zyx, label_zyx = pool(label_zyx, more, share_zyx)
        size = size * more
    inside = [Surface(s.instance, np.clip(s.vertices, 0, limits).astype(np.float32), s.faces) for s in found]
    return inside, float(size.max())


def _factors(size: npt.NDArray[np.float64], cell: float) -> Factors:
    """Voxels (z, y, x) that make a cell of about ``cell`` nm."""
    z, y, x = (max(1, round(cell / length)) for length in size.tolist())
    return z, y, x


def _cell_faces(label_zyx: Ids) -> int:
    """Faces between cells of different instances, or of one and none."""
    faces = 0
    for axis in range(3):
        along = np.moveaxis(label_zyx, axis, 0)
        a, b = along[:-1], along[1:]
        differ = a != b
        faces += int(differ.sum()) + int((differ & (a != 0) & (b != 0)).sum()) + int((along[[0, -1]] != 0).sum())
    return faces


def _surfaces(share_zyx: Floats, label_zyx: Ids, size: npt.NDArray[np.float64]) -> list[Surface]:
    """The largest first, at half of the share; a thin one, whose share is never that high, at half of its highest."""
    table = count_block(label_zyx).sort_values(["voxels", "instance"], ascending=[False, True]).head(MOST_SURFACES)
    found = []
    for instance, start, stop in zip(
        table["instance"], table[STARTS].to_numpy(), table[STOPS].to_numpy(), strict=True
    ):
        inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        own_zyx = np.where(label_zyx[inside] == instance, share_zyx[inside], np.float32(0))
        field_zyx = gaussian_filter(np.pad(own_zyx, _PAD), SMOOTHING)
        level = min(0.5, 0.5 * float(field_zyx.max()))
        if level > 0:
            vertices, faces, _, _ = marching_cubes(field_zyx, level)  # type: ignore[no-untyped-call]
            placed = (vertices - _PAD + 0.5 + start) * size
            found.append(Surface(int(instance), placed.astype(np.float32), faces.astype(np.int32)))
    return found


class _Held(Volume):
    """An array that stands for one box of a volume; what lies beyond the box cannot be read."""

    def __init__(self, array_zyx: Array, box: Box, like: Volume) -> None:
        super().__init__(VolumeInfo(like.path, like.shape, array_zyx.dtype, like.voxel_size, {"kind": "instances"}))
        self._part, self._placed = ArrayVolume(array_zyx), box

    def _read(self, box: Box) -> Array:
        return self._part.read(box.inside(self._placed))


def hold(instances: Volume, box: Box | None = None, small: int = SMALL) -> Volume:
    """The ids of a box (None: all) in memory, those of fewer than ``small`` voxels in it as background.

    Ids that are computed where they are read are computed once in this way, and not again for each slice. As they are
    where they would take too much memory.
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
    return _Held(id_zyx, box, instances)


def plain_table(instances: Volume, box: Box, voxel_size: Sequence[float] | None) -> DataFrame:
    """Size and place of each instance in a box.

    ``instance``, ``voxels``, with a voxel size ``volume_nm3`` and ``diameter_sphere_nm`` (of a ball of that volume),
    the box in voxels of the volume (``box_z0`` to ``box_x1``) and ``touches_border``: whether it reaches a face of the
    given box.
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
