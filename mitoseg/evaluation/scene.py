"""A picture of all instances of a volume in 3D: shaded surfaces in a box with its lengths, without a window.

up                    the eye looks down at a slice: x runs to the right, y away,
 |   eye (towards     z up, so that nothing is mirrored
 |  /     the reader)
 | /
 +------- right
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from mitoseg.errors import UserError
from mitoseg.evaluation.figures import new_figure, nice_length, save_figure
from mitoseg.segmentation.exporting import FoundObject, choose_objects, colour_of, find_objects, held
from mitoseg.segmentation.meshes import Mesh, mesh_object
from mitoseg.storage import check_output
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.base import Volume

Floats = npt.NDArray[np.float64]

ELEVATION, AZIMUTH = 32.0, -62.0
"""Where the eye is, in degrees: above the plane of a slice, and around z from x to y."""

_DETAIL = 240
"""Grid steps along the longest side of the volume that the surfaces are drawn with."""
_SMALL = 8
"""Grid steps that an object must have along its longest side, else it is drawn as fine as it is."""
_DISTANCE = 2.5
"""Of the eye, in diagonals of the box: nearer is more perspective."""
_AMBIENT, _KEY, _FILL, _SHINE, _HAZE = 0.42, 0.62, 0.18, 0.22, 0.2
_MARGIN = 0.1
"""Around the box, as a share of its width."""


def save_scene(
    path: Path | str,
    instances: Volume,
    *,
    voxel_size: Sequence[float] | None = None,
    ids: Iterable[int] | None = None,
    min_volume: float = 0.0,
    dpi: float = 150,
    overwrite: bool = False,
) -> int:
    """Write `scene_figure` of a volume of instances as a PNG, and say how many objects are on it; needs no extra.

    Large objects are drawn on a coarser grid than the voxels', which the picture cannot show anyway. Only ``ids`` are
    drawn, where they are given, and none below ``min_volume`` nm^3. The picture is 8 inches wide.
    """
    check_output(path, overwrite)
    if voxel_size is None and instances.voxel_size is None:
        raise UserError("the voxel size is unknown", instances.path, "give voxel_size=[z,y,x] in nm")
    size = check_voxel_size(instances.voxel_size if voxel_size is None else voxel_size)  # type: ignore[arg-type]
    shape_nm = [n * v for n, v in zip(instances.shape, size, strict=True)]
    source = held(instances)
    chosen = choose_objects(find_objects(source), ids, min_volume / math.prod(size) - 1e-9)
    if not chosen:
        raise UserError("no instance to draw", instances.path, "check ids, min_volume and that it holds instances")
    meshes = {one.id: _coarse_mesh(source, one, size, max(shape_nm) / _DETAIL) for one in chosen}
    save_figure(scene_figure(meshes, shape_nm, dpi=dpi), Path(path), overwrite=overwrite)
    return len(chosen)


def _coarse_mesh(source: Volume, one: FoundObject, size: Sequence[float], step: float) -> Mesh:
    """The surface on a grid of about ``step`` nm, half or more of whose voxels are the object's."""
    mask_zyx = source.read(one.box) == one.id
    longest = max(n * v for n, v in zip(mask_zyx.shape, size, strict=True))
    step = min(step, longest / _SMALL)
    factors = [max(1, round(step / v)) for v in size]
    start = [s // f * f for s, f in zip(one.box.start, factors, strict=True)]  # one grid for all objects
    stop = [-(-s // f) * f for s, f in zip(one.box.stop, factors, strict=True)]
    around = [(a - b, d - c) for a, b, c, d in zip(one.box.start, start, one.box.stop, stop, strict=True)]
    padded = np.pad(mask_zyx, around)
    parts = [part for n, f in zip(padded.shape, factors, strict=True) for part in (n // f, f)]
    coarse_zyx = padded.reshape(parts).mean(axis=(1, 3, 5), dtype=np.float32) >= 0.5
    if not coarse_zyx.any():
        return mesh_object(mask_zyx, size, start=one.box.start)
    coarse_size = [v * f for v, f in zip(size, factors, strict=True)]
    return mesh_object(coarse_zyx, coarse_size, start=[s // f for s, f in zip(start, factors, strict=True)])


@dataclass(frozen=True)
class Camera:
    """A perspective view of a box of (x, y, z) nm that begins at 0; angles in degrees."""

    size: tuple[float, float, float]
    elevation: float = ELEVATION
    azimuth: float = AZIMUTH

    @property
    def eye(self) -> Floats:
        """Unit vector from the box towards the eye."""
        up, around = math.radians(self.elevation), math.radians(self.azimuth)
        return np.array([math.cos(up) * math.cos(around), math.cos(up) * math.sin(around), math.sin(up)])

    @property
    def right(self) -> Floats:
        """Unit vector to the right."""
        around = math.radians(self.azimuth)
        return np.array([-math.sin(around), math.cos(around), 0.0])

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """Places in the picture (..., 2) and depths (...), larger nearer, of points (..., 3)."""
        centred = points - np.array(self.size) / 2
        axes = np.stack([self.right, np.cross(self.eye, self.right), self.eye], axis=1)
        seen = centred @ axes
        distance = _DISTANCE * float(np.linalg.norm(self.size))
        return seen[..., :2] * (distance / (distance - seen[..., 2:])), seen[..., 2]


def scene_figure(
    meshes: Mapping[int, Mesh],
    shape_nm: Sequence[float],
    *,
    elevation: float = ELEVATION,
    azimuth: float = AZIMUTH,
    dpi: float = 150,
) -> Figure:
    """Draw closed meshes in the box of their volume.

    Triangles that face away are left out, the others sorted from back to front all together, so that objects hide
    one another as they should, which mplot3d's do not. Meshes, with vertices in nm, go by the number of the instance,
    which chooses the colour; the volume is (z, y, x) in nm, the angles of the eye in degrees.
    """
    if not meshes:
        raise ValueError("no meshes to draw")
    z, y, x = (float(n) for n in shape_nm)
    camera = Camera((x, y, z), elevation, azimuth)
    corners = np.concatenate([mesh.vertices[mesh.faces] for mesh in meshes.values()])
    base = np.concatenate([np.tile(colour_of(number), (len(mesh.faces), 1)) for number, mesh in meshes.items()])
    flat, depth = camera.project(corners)
    (across, up), (right, high) = (flat[:, 1] - flat[:, 0]).T, (flat[:, 2] - flat[:, 0]).T
    seen = across * high - up * right > 0  # counter-clockwise, from outside
    corners, base, flat, depth = corners[seen], base[seen], flat[seen], depth[seen]
    order = np.argsort(depth.mean(axis=1), kind="stable")
    colours = shade(corners, base, camera)[order]
    figure, ax = _axes(camera, dpi)
    ax.add_collection(
        PolyCollection(list(flat[order]), facecolors=colours, edgecolors=colours, linewidths=0.2, zorder=2)
    )
    _draw_box(ax, camera)
    return figure


def shade(corners: Floats, base: Floats, camera: Camera) -> Floats:
    """Colours of triangles under a light from the upper left of the eye and a weak one from the other side.

    Lambert's law for both, Blinn's highlight for the first (SIGGRAPH 1977); what is far pales. Corners (n, 3, 3) are
    (x, y, z), counter-clockwise seen from outside, the base (n, 3) is RGB in [0, 1].
    """
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    eye, right = camera.eye, camera.right
    key, fill = _unit(eye - 0.6 * right + [0, 0, 0.8]), _unit(eye + 1.2 * right - [0, 0, 0.4])
    light = _AMBIENT + _KEY * np.clip(normal @ key, 0, 1) + _FILL * np.clip(normal @ fill, 0, 1)
    highlight = _SHINE * np.clip(normal @ _unit(key + eye), 0, 1) ** 24
    depth = corners.mean(axis=1) @ eye
    haze = _HAZE * (depth.max(initial=0) - depth)[:, None] / max(float(np.linalg.norm(camera.size)), 1e-12)
    result: Floats = np.clip(base * light[:, None] + highlight[:, None], 0, 1) * (1 - haze) + haze
    return np.clip(result, 0, 1)


def _unit(vector: Floats) -> Floats:
    unit: Floats = vector / np.linalg.norm(vector)
    return unit


def _axes(camera: Camera, dpi: float) -> tuple[Figure, Axes]:
    """A figure that just holds the box, with a margin for lengths."""
    corners, _ = camera.project(np.array(list(product(*((0.0, n) for n in camera.size)))))
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    margin = _MARGIN * (right - left)
    tall = (top - bottom + 1.1 * margin) / (right - left + 2 * margin)
    figure = new_figure(8.0, 8.0 * tall, dpi)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(left - margin, right + margin), ylim=(bottom - 0.6 * margin, top + 0.5 * margin))
    ax.set_axis_off()
    return figure, ax


def _draw_box(ax: Axes, camera: Camera) -> None:
    """Edges of the box: three above the objects, three behind all of them, and its outline."""
    far = [0.0 if e > 0 else n for e, n in zip(camera.eye, camera.size, strict=True)]
    edges: tuple[list[Floats], ...] = ([], [], [])
    for axis in range(3):
        for ends in product(*((0.0, n) for n in camera.size)):
            if ends[axis] == 0:
                other = list(ends)
                other[axis] = camera.size[axis]
                away = sum(ends[i] == far[i] for i in range(3) if i != axis)  # faces of the edge that face away
                edges[away].append(camera.project(np.array([ends, other]))[0])
    for lines, colour, order in zip(edges, ("0.35", "0.55", "0.82"), (3, 1, 0), strict=True):
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=0.8, zorder=order))
    _lengths(ax, camera)


def _lengths(ax: Axes, camera: Camera) -> None:
    """Length and name of an edge along each axis, on the outline of the box, and a bar of a round length."""
    x, y, z = camera.size
    corners = np.array(list(product(*((0.0, n) for n in camera.size))))
    near_y, near_x = (0.0 if camera.eye[1] < 0 else y), (0.0 if camera.eye[0] < 0 else x)
    leftmost = corners[int(np.argmin(camera.project(corners)[0][:, 0]))]
    edges = {
        "x": np.array([[0, near_y, 0], [x, near_y, 0]]),
        "y": np.array([[near_x, 0, 0], [near_x, y, 0]]),
        "z": np.array([[leftmost[0], leftmost[1], 0], [leftmost[0], leftmost[1], z]]),
    }
    middle = camera.project(np.array(camera.size) / 2 * [1, 1, 0])[0]
    for name, edge in edges.items():
        flat = camera.project(edge)[0]
        at = flat.mean(axis=0)
        out = [-1.0, 0.0] if name == "z" else (at - middle) / max(float(np.linalg.norm(at - middle)), 1e-12)
        length = float(np.linalg.norm(edge[1] - edge[0]))
        align = "right" if out[0] < -0.35 else "left" if out[0] > 0.35 else "center"
        ax.annotate(
            f"{name}  {_text(length)}", at, (6 * out[0], 6 * out[1]), textcoords="offset points", ha=align,
            va="center" if name == "z" else "top", fontsize=8, color="0.25", zorder=4,
        )  # fmt: skip
    bar = nice_length(0.25 * x)
    start = edges["x"][0]
    flat = camera.project(np.array([start, start + np.array([bar, 0, 0])]))[0]
    ax.add_collection(LineCollection([flat], colors="black", linewidths=3.0, zorder=4, capstyle="butt"))
    label = flat.mean(axis=0)
    ax.annotate(_text(bar), label, (0, -7), textcoords="offset points", ha="right", va="top", fontsize=10, zorder=4)


def _text(nm: float) -> str:
    return f"{nm / 1000:.3g} µm" if nm >= 1000 else f"{nm:.3g} nm"
