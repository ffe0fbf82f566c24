"""Smoothing of triangle meshes that neither shrinks nor tears them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

Points = npt.NDArray[np.float64]
Faces = npt.NDArray[np.int64]

_SHRINK, _GROW = 0.5, -0.53
"""Taubin's lambda and mu: features longer than about 1 / sqrt(1 / lambda + 1 / mu) edges stay."""


def taubin(vertices: Points, faces: Faces, rounds: int) -> Points:
    """Low-pass filter of a surface (Taubin, SIGGRAPH 1995): each round moves every vertex twice.

    v <- v + lambda (mean of the neighbours - v), and the same with mu < -lambda, which undoes the shrinking.

    Args:
        vertices: (n, 3).
        faces: (m, 3), of a closed surface.
        rounds: 0 changes nothing.

    Returns:
        The moved vertices; faces stay as they are, so a closed mesh stays closed.
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
    """Move a surface along its normals by the one distance that gives it a volume.

    To first order the volume grows by area times distance; three steps of Newton's method are enough.

    Args:
        vertices: (n, 3).
        faces: (m, 3), counter-clockwise seen from outside.
        volume: Wanted.
        at_most: The surface moves no farther in all, so that a thin object does not turn inside out.
    """
    moved, left = vertices, at_most
    for _ in range(3):
        a, b, c = (moved[faces[:, i]] - moved[:1] for i in range(3))
        normal = np.cross(b - a, c - a) / 2
        area = float(np.linalg.norm(normal, axis=1).sum())
        missing = volume - float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)
        step = float(np.clip(missing / max(area, 1e-12), -left, left))
        moved, left = moved + step * _vertex_normals(normal, faces, len(moved)), left - abs(step)
    return moved


def _vertex_normals(normal: Points, faces: Faces, count: int) -> Points:
    """Unit normals of vertices: those of the faces around them, weighted by area."""
    total = np.stack([np.bincount(faces.ravel(), np.repeat(part, 3), count) for part in normal.T], axis=1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    unit: Points = total / np.maximum(length, 1e-12)
    return unit
