r"""Surfaces of instances as closed triangle meshes, in nm.

Vertices are (x, y, z) as mesh files expect them, while arrays are z, y, x. Voxel i covers [i, i + 1) voxel sizes, so
its centre is at i + 1/2 and a mesh fills the box of its voxels:

    voxel         0     1     2     3                 an object of the voxels 1 and 2
              |-----|-----|-----|-----|               has a mesh from 1 to 3 voxel sizes
    nm / size 0     1     2     3     4

An object that the border of the volume cuts is closed there by a flat face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from skimage.measure import marching_cubes

from mitoseg.extras import import_extra
from mitoseg.segmentation.postprocess import even_spacing
from mitoseg.segmentation.smooth_shape import hold_volume, taubin

Mask = npt.NDArray[np.bool_]

SMOOTHING = 10
"""Rounds of smoothing that take the steps of voxels away and leave what is larger."""
_LEAST_FACES = 400
"""A mesh is not simplified below so many faces: small objects would lose their shape."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: (n, 3) float64, (x, y, z) in nm.
        faces: (m, 3) int64, vertices of a triangle, counter-clockwise seen from outside.
    """

    vertices: npt.NDArray[np.float64]
    faces: npt.NDArray[np.int64]

    @cached_property
    def volume(self) -> float:
        """In nm^3, by the divergence theorem: the sum of a . (b x c) / 6 over the triangles."""
        a, b, c = self._corners
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    @cached_property
    def area(self) -> float:
        """In nm^2."""
        a, b, c = self._corners
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)

    @cached_property
    def is_closed(self) -> bool:
        """Whether every edge belongs to two triangles that run along it in opposite directions."""
        if not len(self.faces):
            return False
        edges = np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        code = edges[:, 0] * len(self.vertices) + edges[:, 1]
        back = edges[:, 1] * len(self.vertices) + edges[:, 0]
        distinct = np.unique(code)
        return len(distinct) == len(code) and bool((distinct == np.unique(back)).all())

    @property
    def _corners(self) -> tuple[npt.NDArray[np.float64], ...]:
        origin = self.vertices[:1]  # far from the origin the terms of the volume would cancel
        return tuple(self.vertices[self.faces[:, i]] - origin for i in range(3))


def mesh_object(
    mask_zyx: Mask,
    voxel_size: Sequence[float],
    *,
    start: Sequence[int] = (0, 0, 0),
    smoothing: int = SMOOTHING,
    reduction: float = 1.0,
) -> Mesh:
    """The surface of one object.

    Marching cubes on the padded mask (Lewiner et al., J. Graphics Tools 8(2), 2003), smoothed by Taubin's filter,
    simplified, and moved along its normals by one small distance so that it holds the volume of the voxels: within
    1 % for objects of 500 voxels and more. Where voxels are twice as long along one axis as along another or longer,
    shapes are interpolated between the slices first.

    Args:
        mask_zyx: The object within any box around it.
        voxel_size: (z, y, x) in nm.
        start: The voxel of the volume that the mask begins with.
        smoothing: Rounds of Taubin's filter; 0 keeps the steps of the voxels.
        reduction: How many times fewer faces; 1 keeps all. Above 1 it needs the extra ``[mesh]``.

    Raises:
        ValueError: The mask is empty.
        UserError: The library that simplifies is not installed.
    """
    if not mask_zyx.any():
        raise ValueError("an empty mask has no surface")
    volume = float(np.count_nonzero(mask_zyx)) * float(np.prod(voxel_size))
    fine_zyx, fine_size = even_spacing(mask_zyx, voxel_size)
    padded_zyx = np.pad(fine_zyx, 1).astype(np.float32)
    raw_zyx, faces, _, _ = marching_cubes(padded_zyx, 0.5, spacing=tuple(fine_size))  # type: ignore[no-untyped-call]
    # A padded voxel's centre is at its index; without the padding at its index less 1, and half a voxel from its face.
    vertices = (raw_zyx.astype(np.float64) - 0.5 * np.asarray(fine_size))[:, ::-1]
    mesh = Mesh(vertices, _outward(vertices, faces.astype(np.int64)))
    mesh = Mesh(taubin(mesh.vertices, mesh.faces, smoothing), mesh.faces)
    if reduction > 1:
        mesh = simplify(mesh, reduction)
    if smoothing or reduction > 1:
        vertices = hold_volume(mesh.vertices, mesh.faces, volume, at_most=0.5 * min(voxel_size))
        mesh = Mesh(vertices, mesh.faces)
    corner = np.array([s * v for s, v in zip(start, voxel_size, strict=True)])[::-1]
    return Mesh(mesh.vertices + corner, mesh.faces)


def simplify(mesh: Mesh, reduction: float, least_faces: int = _LEAST_FACES) -> Mesh:
    """Fewer triangles, by collapsing edges (Garland and Heckbert, SIGGRAPH 1997, as fast-quadric-simplification does).

    The library does not promise to keep a mesh closed; where it does not, the reduction is halved until it does.

    Args:
        mesh: A closed mesh.
        reduction: How many times fewer faces.
        least_faces: No mesh gets fewer.

    Raises:
        UserError: The library is not installed.
    """
    zmesh = import_extra("zmesh", "zmesh", "mesh")
    origin = mesh.vertices.mean(axis=0)  # near zero, float32 is exact enough
    while reduction > 1 and (target := max(round(len(mesh.faces) / reduction), least_faces)) < len(mesh.faces):
        full = zmesh.Mesh((mesh.vertices - origin).astype(np.float32), mesh.faces.astype(np.uint32), None)
        few = zmesh.simplify_fqmr(full, target_count=target)
        simple = Mesh(few.vertices.astype(np.float64) + origin, few.faces.astype(np.int64))
        if simple.is_closed and simple.volume > 0:
            return simple
        reduction /= 2
    return mesh


def _outward(vertices: npt.NDArray[np.float64], faces: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Faces that are counter-clockwise seen from outside, all or none turned."""
    return faces if Mesh(vertices, faces).volume > 0 else faces[:, ::-1]
