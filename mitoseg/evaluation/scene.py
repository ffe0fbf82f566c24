"""A picture of all instances of a volume in 3D: their surfaces, on a grid as fine as the picture needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mitoseg.errors import UserError
from mitoseg.evaluation.scene_drawing import AZIMUTH, ELEVATION, scene_figure
from mitoseg.segmentation.finding import FoundObject, choose_objects, find_objects, held, read_mask
from mitoseg.segmentation.meshes import Mesh, mesh_object
from mitoseg.storage import atomic_output
from mitoseg.volumes.base import Volume
from mitoseg.volumes.units import check_voxel_size

_DETAIL = 240
"""Grid steps along the longest side of the volume that the surfaces are drawn with."""
_SMALL = 8
"""Grid steps that an object must have along its longest side, else it is drawn as fine as it is."""


def save_scene(
    path: Path | str,
    instances: Volume,
    *,
    voxel_size: Sequence[float] | None = None,
    ids: Iterable[int] | None = None,
    min_volume: float = 0.0,
    elevation: float = ELEVATION,
    azimuth: float = AZIMUTH,
    dpi: float = 150,
    overwrite: bool = False,
) -> int:
    """Write `scene_figure` of a volume of instances as a PNG; needs no extra.

    Large objects are drawn on a coarser grid than the voxels', which the picture cannot show anyway.

    Args:
        path: The PNG file.
        instances: Numbers from 1, 0 for background.
        voxel_size: (z, y, x) in nm; None: the volume's.
        ids: Only these instances; None for all.
        min_volume: In nm^3; smaller objects are left out.
        elevation: See `scene_figure`, as for the next two.
        azimuth: In degrees.
        dpi: Of the picture, which is 8 inches wide.
        overwrite: Whether a file that exists may be replaced.

    Returns:
        How many objects were drawn.

    Raises:
        UserError: There is no voxel size or no such instance, or the file cannot be written.
    """
    if voxel_size is None and instances.voxel_size is None:
        raise UserError("the voxel size is unknown", instances.path, "give voxel_size=[z,y,x] in nm")
    size = check_voxel_size(instances.voxel_size if voxel_size is None else voxel_size)  # type: ignore[arg-type]
    shape_nm = [n * v for n, v in zip(instances.shape, size, strict=True)]
    with atomic_output(path, overwrite=overwrite) as temporary:
        source = held(instances)
        chosen = choose_objects(find_objects(source), ids, min_volume / math.prod(size) - 1e-9)
        if not chosen:
            raise UserError("no instance to draw", instances.path, "check ids, min_volume and that it holds instances")
        meshes = {one.id: _coarse_mesh(source, one, size, max(shape_nm) / _DETAIL) for one in chosen}
        figure = scene_figure(meshes, shape_nm, elevation=elevation, azimuth=azimuth, dpi=dpi)
        figure.savefig(temporary, format="png")
    return len(chosen)


def _coarse_mesh(source: Volume, one: FoundObject, size: Sequence[float], step: float) -> Mesh:
    """The surface on a grid of about ``step`` nm, half or more of whose voxels are the object's."""
    mask_zyx = read_mask(source, one)
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
