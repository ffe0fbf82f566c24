"""A picture of all instances of a volume in 3D: shaded surfaces in a box whose edges have lengths, without a window.

The eye looks down at a slice: x runs to the right, y away, z up, so that nothing is mirrored.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LightSource
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageChops, ImageOps

from mitoseg.evaluation.figures import new_figure
from mitoseg.segmentation.exporting import FoundObject, choose_objects, colour_of, known_voxel_size
from mitoseg.segmentation.meshes import Mesh, mesh_object
from mitoseg.storage import atomic_output, check_output
from mitoseg.volumes.base import Volume

ELEVATION, AZIMUTH = 32.0, -62.0  # where the eye is, in degrees: above the plane of a slice, and around z from x to y
_DETAIL = 240  # grid steps along the longest side of the volume that the surfaces are drawn with
_SMALL = 8  # grid steps that an object must have along its longest side, else it is drawn as fine as it is


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
    drawn, where they are given, and none below ``min_volume`` nm^3.
    """
    check_output(path, overwrite)
    size = known_voxel_size(instances, voxel_size)
    shape_nm = [n * v for n, v in zip(instances.shape, size, strict=True)]
    source, chosen = choose_objects(instances, size, ids, min_volume)
    meshes = {one.id: _coarse_mesh(source, one, size, max(shape_nm) / _DETAIL) for one in chosen}
    buffer = io.BytesIO()
    scene_figure(meshes, shape_nm, dpi=dpi).savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB")
    cropped = picture.crop(ImageChops.invert(picture).getbbox())  # the box may have any shape
    with atomic_output(path, overwrite=overwrite) as temporary:
        ImageOps.expand(cropped, 8, "white").save(temporary, "PNG", dpi=(dpi, dpi))
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


def scene_figure(
    meshes: Mapping[int, Mesh],
    shape_nm: Sequence[float],
    *,
    elevation: float = ELEVATION,
    azimuth: float = AZIMUTH,
    dpi: float = 150,
) -> Figure:
    """Draw closed meshes in the box of their volume.

    All triangles are one collection, since mplot3d sorts from back to front only within one. Meshes, with vertices in
    nm, go by the number of the instance, which chooses the colour; the volume is (z, y, x) in nm, the angles of the
    eye in degrees.
    """
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped] # slow to load

    if not meshes:
        raise ValueError("no meshes to draw")
    longest = max(shape_nm)
    unit, scale = ("µm", 1000.0) if longest >= 1000 else ("nm", 1.0)
    corners = np.concatenate([mesh.vertices[mesh.faces] for mesh in meshes.values()]) / scale
    base = np.concatenate([np.tile(colour_of(number), (len(mesh.faces), 1)) for number, mesh in meshes.items()])
    sides = [n / scale for n in reversed(shape_nm)]
    figure = new_figure(10.0, 10.0, dpi)
    ax: Any = figure.add_axes((0, 0, 1, 1), projection="3d")
    light = LightSource(azdeg=130 - azimuth, altdeg=45)  # from the upper left of the eye
    bodies = Poly3DCollection(corners, facecolors=base, edgecolors=base, linewidths=0.2, shade=True, lightsource=light)
    ax.add_collection3d(bodies)
    for name, axis, side in zip("xyz", (ax.xaxis, ax.yaxis, ax.zaxis), sides, strict=True):
        ax.set(**{f"{name}lim": (0, side), f"{name}label": f"{name} ({unit})"})
        axis.set_major_locator(MaxNLocator(max(1, round(6 * side / max(sides)))))
        axis.set_pane_color((0.98, 0.98, 0.98))
        axis.labelpad = 7  # or the name lies on numbers
    ax.set_box_aspect(sides, zoom=0.75)  # leaves room for the numbers
    ax.set_proj_type("persp", focal_length=2.5)
    ax.view_init(elevation, azimuth)
    return figure
