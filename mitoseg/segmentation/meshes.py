"""Surfaces of instances as closed triangle meshes, in nm.

Vertices are (x, y, z) as mesh files expect them, while arrays are z, y, x. Voxel i covers [i, i + 1) voxel sizes, so
a mesh fills the box of its voxels. An object that the border of the volume cuts is closed there by a flat face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import edt
import numpy as np
import numpy.typing as npt
from scipy import sparse
from skimage.measure import marching_cubes

from mitoseg.errors import import_extra

Points = npt.NDArray[np.float64]
Faces = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
SMOOTHING = 10  # rounds of smoothing that take the steps of voxels away and leave what is larger
_LEAST_FACES = 400  # a mesh is not simplified below so many faces: small objects would lose their shape


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh."""

    vertices: Points  # (n, 3), (x, y, z) in nm
    faces: Faces  # (m, 3), counter-clockwise seen from outside

    @cached_property
    def volume(self) -> float:
        """In nm^3, by the divergence theorem: the sum of a . (b x c) / 6 over the triangles."""
        a, b, c = self.corners
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    @cached_property
    def area(self) -> float:
        """In nm^2."""
        a, b, c = self.corners
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

    @cached_property
    def corners(self) -> tuple[Points, ...]:
        """The three corners of each face (m, 3), from the first vertex."""
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
    """The surface of one object: ``mask_zyx`` is any box around it, ``start`` the box's first voxel in the volume.

    Marching cubes on the padded mask (Lewiner et al., J. Graphics Tools 8(2), 2003), smoothed by rounds of Taubin's
    filter, simplified to ``reduction`` times fewer faces (above 1 with the extra ``[mesh]``), and moved along its
    normals by one small distance so that it holds the volume of the voxels: within 1 % for objects of 500 voxels and
    more. It leaves the box of the mask by half of the smallest voxel side at most. For thick slices see
    `even_spacing`.
    """
    if not mask_zyx.any():
        raise ValueError("an empty mask has no surface")
    volume = float(np.count_nonzero(mask_zyx)) * float(np.prod(voxel_size))
    fine_zyx, fine_size = even_spacing(mask_zyx, voxel_size)
    padded_zyx = np.pad(fine_zyx, 1).astype(np.float32)
    raw_zyx, faces, _, _ = marching_cubes(padded_zyx, 0.5, spacing=tuple(fine_size))  # type: ignore[no-untyped-call]
    # A padded voxel's centre is at its index; without the padding at its index less 1, and half a voxel from its face.
    vertices = (raw_zyx.astype(np.float64) - 0.5 * np.asarray(fine_size))[:, ::-1]
    mesh = Mesh(vertices, faces.astype(np.int64))
    # For some masks scikit-image 0.26 gives faces on the same corners twice, back to back: they go. Most meshes have
    # none, which sums of random numbers of the corners tell fast.
    number = np.random.default_rng(0).integers(2**61, size=len(vertices))
    codes = np.sort(number[mesh.faces[:, 0]] + number[mesh.faces[:, 1]] + number[mesh.faces[:, 2]])
    if (codes[1:] == codes[:-1]).any():
        _, same, count = np.unique(np.sort(mesh.faces, axis=1), axis=0, return_inverse=True, return_counts=True)
        mesh = Mesh(vertices, mesh.faces[count[same.ravel()] == 1])
    outward = mesh.faces if mesh.volume > 0 else mesh.faces[:, ::-1]
    mesh = Mesh(taubin(vertices, outward, smoothing), outward)
    if reduction > 1:
        mesh = simplify(mesh, reduction)
    if smoothing or reduction > 1:
        half = 0.5 * min(voxel_size)
        vertices = hold_volume(mesh.vertices, mesh.faces, volume, at_most=half)
        far = np.multiply(mask_zyx.shape, voxel_size)[::-1]
        mesh = Mesh(np.clip(vertices, -half, far + half), mesh.faces)
    corner = np.array([s * v for s, v in zip(start, voxel_size, strict=True)])[::-1]
    return Mesh(mesh.vertices + corner, mesh.faces)


def simplify(mesh: Mesh, reduction: float, least_faces: int = _LEAST_FACES) -> Mesh:
    """Fewer triangles, by collapsing edges (Garland and Heckbert, SIGGRAPH 1997, as fast-quadric-simplification does).

    The library does not promise to keep a mesh closed; where it does not, the reduction is halved until it does.
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


_SHRINK, _GROW = 0.5, -0.53
"""Taubin's lambda and mu: features longer than about 1 / sqrt(1 / lambda + 1 / mu) edges stay."""


def taubin(vertices: Points, faces: Faces, rounds: int) -> Points:
    """Low-pass filter of a surface (Taubin, SIGGRAPH 1995): each round moves every vertex twice.

    v <- v + lambda (mean of the neighbours - v), and the same with mu < -lambda, which undoes the shrinking.
    """
    tail, head = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    count = len(vertices)
    # In a closed surface every edge runs once in each direction.
    edges = sparse.csr_array((np.ones(len(tail)), (tail, head)), shape=(count, count))
    degree = np.maximum(np.bincount(tail, minlength=count), 1)[:, None]
    for _ in range(rounds):
        for step in (_SHRINK, _GROW):
            vertices = vertices + step * (edges @ vertices / degree - vertices)
    return vertices


def hold_volume(vertices: Points, faces: Faces, volume: float, at_most: float) -> Points:
    """Move a closed surface along its normals by the one distance that gives it a volume.

    To first order the volume grows by area times distance; three steps of Newton's method are enough. It moves by no
    more than ``at_most`` in all, so that a thin object does not turn inside out.
    """
    moved, left = vertices, at_most
    for _ in range(3):
        mesh = Mesh(moved, faces)
        a, b, c = mesh.corners
        normal = np.cross(b - a, c - a) / 2
        step = float(np.clip((volume - mesh.volume) / max(mesh.area, 1e-12), -left, left))
        # a vertex moves along the mean of the normals of its faces, weighted by area
        total = np.stack([np.bincount(faces.ravel(), np.repeat(n, 3), len(moved)) for n in normal.T], axis=1)
        unit = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
        moved, left = moved + step * unit, left - abs(step)
    return moved


_EVEN = 2.0  # up to this ratio of voxel sizes nothing is interpolated
_MOST = 16  # slices that one slice becomes at most


def even_spacing(mask_zyx: Mask, voxel_size: Sequence[float]) -> tuple[Mask, tuple[float, float, float]]:
    """A mask on a grid that is about as fine along z as across, by shape-based interpolation.

    Slices that are more than twice as thick as pixels are wide are cut into several. Between two slices the signed
    distances to their outlines are interpolated, and what is positive is inside (Raya and Udupa, IEEE TMI 9(1), 1990).
    The first and the last slice keep their thickness, so the box stays the same:

        slice     |---- 0 ----|---- 1 ----|           4 from 1
        becomes   |-a-|-a-|ab-|ab-|ba-|ba-|-b-|-b-|   a of slice 0, ab a mixture nearer to a
    """
    z, y, x = (float(v) for v in voxel_size)
    factor = min(round(z / min(y, x)), _MOST) if z / min(y, x) > _EVEN else 1
    if factor == 1:
        return mask_zyx, (z, y, x)
    distance_zyx: list[npt.NDArray[np.float32] | None] = []  # to the outline, positive inside; None of an empty slice
    for padded_yx in np.pad(mask_zyx, ((0, 0), (1, 1), (1, 1))):
        inside, outside = (edt.edt(np.ascontiguousarray(m), anisotropy=(y, x)) for m in (padded_yx, ~padded_yx))
        distance_zyx.append((inside - outside)[1:-1, 1:-1] if padded_yx.any() else None)
    fine_zyx = np.empty((len(mask_zyx) * factor, *mask_zyx.shape[1:]), bool)
    for index in range(len(fine_zyx)):
        where = min(max((index + 0.5) / factor - 0.5, 0), len(mask_zyx) - 1)  # in slices, at their middles
        low = int(where)
        lower, upper = distance_zyx[low], distance_zyx[min(low + 1, len(mask_zyx) - 1)]
        if lower is None or upper is None:  # where the object pauses, the nearer slice decides
            fine_zyx[index] = mask_zyx[round(where)]
        else:
            fine_zyx[index] = (1 - (where - low)) * lower + (where - low) * upper > 0
    return fine_zyx, (z / factor, y, x)
