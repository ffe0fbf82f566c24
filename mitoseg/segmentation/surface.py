"""Area of the surface of a binary object, by a mesh round its smooth shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from skimage.measure import marching_cubes

from mitoseg.segmentation.smooth_shape import WHOLE, Cut, Floats, Mask, SmoothShape, smooth_shape


def surface_area(mask_zyx: Mask, voxel_size: Sequence[float], cut: Cut = WHOLE) -> float:
    """Surface of one object in nm2.

    Args:
        mask_zyx: The object's crop, with at least one voxel.
        voxel_size: (z, y, x) in nm.
        cut: See `mitoseg.segmentation.smooth_shape.smooth_shape`. The faces in which the volume's border cuts the
            object are no membrane and are not counted.

    Example:
        A ball of radius 10 voxels of 5 nm, 4 pi 50^2 = 31,416 nm2:

        >>> z, y, x = np.indices((21, 21, 21)) - 10
        >>> area = surface_area(z**2 + y**2 + x**2 <= 100, (5, 5, 5))
        >>> bool(abs(area / 31416 - 1) < 0.01)
        True
    """
    return shape_surface(smooth_shape(mask_zyx, voxel_size, cut))


def shape_surface(shape: SmoothShape) -> float:
    """Surface of a smooth shape in nm2: that of its mesh; see `mesh_area`."""
    return mesh_area(shape, *shape_mesh(shape))


def mesh_area(shape: SmoothShape, vertices: Floats, faces: npt.NDArray[np.integer]) -> float:
    """Area of a shape's mesh in nm2, less what lies beyond the volume's border.

    No body has less surface than a ball of its volume; where the mesh of a whole object of a few voxels does, the
    ball's is given.
    """
    corners = vertices[faces]
    sides = corners[:, 1:] - corners[:, :1]
    area: Floats = 0.5 * np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    for axis, (at_low, at_high) in enumerate(shape.cut):
        if at_low:
            area = area * _share_above_zero(corners[:, :, axis] - shape.low[axis])
        if at_high:
            area = area * _share_above_zero(shape.high[axis] - corners[:, :, axis])
    total = float(area.sum())
    return total if any(map(any, shape.cut)) else max(total, _least_area(shape.volume))


def shape_mesh(shape: SmoothShape) -> tuple[Floats, npt.NDArray[np.integer]]:
    """Vertices (n, 3) in nm from the field's first sample, and triangles (m, 3) of their numbers.

    By marching cubes (Lewiner et al., Journal of Graphics Tools 8(2), 2003).

    Where the volume's border cuts the object, the mesh is open and reaches a few voxels beyond the border.
    """
    if shape.field_zyx.min() >= shape.level:  # cut off on all sides
        return np.zeros((0, 3)), np.zeros((0, 3), int)
    vertices, faces, _, _ = marching_cubes(  # type: ignore[no-untyped-call]
        shape.field_zyx, shape.level, spacing=shape.step
    )
    return vertices, faces


def _least_area(volume: float) -> float:
    """Surface of a ball."""
    return float(math.pi ** (1 / 3) * (6 * volume) ** (2 / 3))


def _share_above_zero(distance: Floats) -> Floats:
    """Share of a triangle's area on the positive side of a plane, from its corners' signed distances (n, 3)."""
    far, middle, near = np.sort(distance.astype(np.float64), axis=1).T[::-1]
    tip = _divide(far**2, (far - middle) * (far - near))
    lost = _divide(near**2, (near - far) * (near - middle))
    share = np.where(middle >= 0, 1 - lost, tip)
    return np.where(near >= 0, 1.0, np.where(far <= 0, 0.0, share))


def _divide(a: Floats, b: Floats) -> Floats:
    """Quotient; zero where the denominator is."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
