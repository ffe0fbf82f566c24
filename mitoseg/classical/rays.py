r"""Rays from a point to the first boundary around it, and a description of their lengths that turning leaves alone.

    *------->|          a ray ends where the boundary map reaches a level, where it leaves the volume,
    centre   boundary   or at its reach

Rays are features of shape (Smith, Carleton, Lepetit, "Fast ray features for learning irregular shapes", ICCV 2009; in
3D for supervoxels Lucchi et al., IEEE TMI 31(2), 2012). There a supervoxel's rays are ordered from its longest axis
on; here they are cast twice. The first 26 directions are fixed, and their end points have moments

    M = sum_r d_r^2 u_r u_r^T / R

whose eigenvectors are the body's own axes. The second 26 directions are the face, edge and corner directions of that
frame; an eigenvector's sign is chance, so lengths of directions that differ in signs alone are pooled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
CHUNK = 40_000
"""Centres whose rays are cast together."""


def directions() -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Unit vectors to the 26 neighbours of a voxel, and the group of each: axes that differ in signs alone.

    Returns:
        ``(26, 3)`` float32 of which row 25 - r is opposite to row r, and ``(26,)`` numbers 0 ... 6.
    """
    grid = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[np.abs(grid).any(1)]
    _, group = np.unique(np.abs(grid) @ [1, 2, 4], return_inverse=True)
    return (grid / np.linalg.norm(grid, axis=1, keepdims=True)).astype(np.float32), group.astype(np.intp)


def cast_rays(
    boundary_zyx: npt.NDArray[np.uint8],
    centre: FloatArray,
    unit: FloatArray,
    voxel_size: Sequence[float],
    *,
    reach: float,
    level: int = 128,
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Walk along every ray from every centre, a step of the smallest voxel spacing at a time.

    Args:
        boundary_zyx: Boundary map, 0 ... 255.
        centre: (N, 3) in voxels.
        unit: (1 or N, R, 3), unit vectors in nm.
        voxel_size: (z, y, x) in nm.
        reach: Length in nm at which a ray gives up.
        level: What counts as a boundary.

    Returns:
        Lengths (N, R) in nm, and what the map says where the ray ended (N, R): 0 beyond the volume.
    """
    step = float(min(voxel_size))
    count = int(reach / step)
    size = np.asarray(voxel_size, np.float32)
    rays = (len(centre), unit.shape[1])
    move = np.broadcast_to(unit * (step / size), (*rays, 3)).reshape(-1, 3)
    position = np.repeat(centre.astype(np.float32), rays[1], axis=0)
    length = np.full(rays[0] * rays[1], count, np.int32)
    found = np.zeros(len(length), np.uint8)
    alive = np.arange(len(length))
    for k in range(count + 1):
        at = np.rint(position[alive] + np.float32(k) * move[alive]).astype(np.int32)
        inside = ((at >= 0) & (at < boundary_zyx.shape)).all(1)
        value = np.zeros(len(at), np.uint8)
        value[inside] = boundary_zyx[tuple(at[inside].T)]
        ended = ~inside | (value >= level)
        length[alive[ended]] = k
        found[alive] = value
        alive = alive[~ended]
        if not len(alive):
            break
    return (length * np.float32(step)).reshape(rays), found.reshape(rays)


def ray_features(
    boundary_zyx: npt.NDArray[np.uint8],
    centre: FloatArray,
    voxel_size: Sequence[float],
    *,
    reach: float,
    level: int = 128,
) -> FloatArray:
    """Rotation-invariant descriptors of the surroundings of many centres.

    Returns:
        (N, `RAY_FEATURES`) float32; lengths are shares of the reach.
    """
    parts = [
        _describe(boundary_zyx, centre[a : a + CHUNK], voxel_size, reach, level) for a in range(0, len(centre), CHUNK)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, RAY_FEATURES), np.float32)


def _describe(
    boundary_zyx: npt.NDArray[np.uint8], centre: FloatArray, voxel_size: Sequence[float], reach: float, level: int
) -> FloatArray:
    unit, group = directions()
    length, found = cast_rays(boundary_zyx, centre, unit[None], voxel_size, reach=reach, level=level)
    share = length / np.float32(reach)
    chord = share + share[:, ::-1]
    moments = np.einsum("nr,ri,rj->nij", share * share, unit, unit) / np.float32(len(unit))
    value, vector = np.linalg.eigh(moments)
    own = np.einsum("rk,nik->nri", unit, vector).astype(np.float32)
    turned, turned_found = cast_rays(boundary_zyx, centre, own, voxel_size, reach=reach, level=level)
    turned /= np.float32(reach)
    axes = np.sqrt(np.maximum(value, 0))
    pooled = [f(turned[:, group == g], axis=1) for g in range(group.max() + 1) for f in (np.mean, np.min)]
    columns = [
        *np.quantile(share, QUANTILES, axis=1),
        *np.quantile(chord, (0.0, 0.25, 0.5), axis=1),
        *axes.T,
        axes[:, 0] / (axes[:, 2] + 1e-3),
        axes[:, 1] / (axes[:, 2] + 1e-3),
        *pooled,
        (found >= level).mean(1),
        found.mean(1) / 255,
        turned_found.std(1) / 255,
    ]
    return np.stack(columns, axis=1).astype(np.float32)


RAY_FEATURES = len(QUANTILES) + 3 + 3 + 2 + 14 + 3
"""Numbers that `ray_features` gives for a centre."""
