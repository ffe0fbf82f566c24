"""The surfaces of the instances as one small mesh, for a scene that turns in the browser."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects, gaussian_filter
from skimage.measure import marching_cubes

from mitoseg.evaluation.report.markup import Html, data_block, element, join, number, pack
from mitoseg.evaluation.report.objects import renumber
from mitoseg.evaluation.report.options import Content
from mitoseg.evaluation.report.reducing import Floats, cell_factors, cell_for, coarse_labels, pool
from mitoseg.geometry import Box

CELLS = 2**23
"""Cells in which the instances are first read."""
LARGEST = 3000
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


def scene_section(content: Content) -> Html | None:
    """The scene; None without instances."""
    box, instances = content.box, content.volumes.get("instances")
    if box is None or instances is None:
        return None
    found, cell = surfaces(content, box)
    if not found:
        return None
    canvas = element(
        "canvas",
        id="scene",
        role="img",
        tabindex="0",
        aria_label="The surfaces of the mitochondria; drag or use the arrow keys to turn them",
    )
    fallback = element("p", "This browser has no WebGL, so the 3D scene is not drawn.", id="no-webgl", hidden=True)
    names = [element("span", id=f"axis-{axis}", class_="axis") for axis in "zyx"]
    unit = "nm" if content.spacing else "voxels"
    count = sum(len(surface.faces) for surface in found)
    said = f"{len(found):,} surfaces, {count:,} triangles, drawn in cells of {number(cell, 3)} {unit}. "
    hint = "Drag to turn, Shift and drag to move, + and \N{MINUS SIGN} or Ctrl and the wheel to zoom, click to pick. "
    frame = "The blue frame is the slice shown above." if box else ""
    tools = element(
        "div",
        element("label", "colour by ", element("select", id="colour-by")),
        element("label", element("input", type="checkbox", id="spin"), " turn by itself"),
        element("button", "reset view", type="button", id="reset"),
        element("span", id="ramp", class_="ramp", hidden=True),
        class_="tools",
    )
    stage = element("div", canvas, *names, element("output", id="picked", class_="picked"), fallback, class_="stage")
    note = element("p", said, element("span", hint, frame, class_="noprint"), class_="soft")
    return join(tools, stage, note, data_block("scene-data", scene_data(found, box, content)))


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
    largest = 1 + np.argsort(-count[1:], kind="stable")[:LARGEST]
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
