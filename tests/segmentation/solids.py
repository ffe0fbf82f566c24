"""Binary solids of known surface, volume and length, at any voxel size, place and turn (nm), and their measures."""

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.special import ellipeinc, ellipkinc

from mitoseg.segmentation.centreline import shape_centreline
from mitoseg.segmentation.smooth_shape import WHOLE, mesh_area, shape_mesh, smooth_shape


def ellipsoid_area(*axes):
    """Legendre's formula, for half axes that are not all equal; else a ball's."""
    c, b, a = sorted(axes)
    if a == c:
        return 4 * np.pi * a * a
    phi = np.arccos(c / a)
    k2 = a * a * (b * b - c * c) / (b * b * (a * a - c * c))
    inner = ellipeinc(phi, k2) * np.sin(phi) ** 2 + ellipkinc(phi, k2) * np.cos(phi) ** 2
    return 2 * np.pi * c * c + 2 * np.pi * a * b / np.sin(phi) * inner


def grid(extent, spacing, rng, turned=True):
    """Positions of voxel centres about a random centre, in a random turn: (3, z, y, x)."""
    ranges = []
    for e, s in zip(extent, spacing, strict=True):
        n = int(np.ceil((e + 3 * s) / s))
        ranges.append((np.arange(-n, n + 1) + rng.uniform(-0.5, 0.5)) * s)
    at = np.stack(np.meshgrid(*ranges, indexing="ij"))
    turn = Rotation.random(rng=rng).as_matrix() if turned else np.eye(3)
    return np.einsum("ij,j...->i...", turn, at)


def crop(mask):
    """The bounding box of a mask."""
    at = np.argwhere(mask)
    return np.ascontiguousarray(mask[tuple(slice(a, b + 1) for a, b in zip(at.min(0), at.max(0), strict=True))])


def ellipsoid(axes, spacing, rng):
    """Mask and area."""
    p = grid([max(axes)] * 3, spacing, rng)
    scaled = p / np.reshape(axes, (3, 1, 1, 1))
    return crop((scaled**2).sum(0) <= 1), ellipsoid_area(*axes)


def torus(ring, tube_radius, spacing, rng):
    """Mask and area."""
    p = grid([ring + tube_radius] * 3, spacing, rng)
    inside = (np.hypot(p[0], p[1]) - ring) ** 2 + p[2] ** 2 <= tube_radius**2
    return crop(inside), 4 * np.pi**2 * ring * tube_radius


def tube(lines, radius, spacing, rng, turned=True):
    """Mask of all voxels within a radius of some lines of points (n, 3), which lie close."""
    turn = Rotation.random(rng=rng).as_matrix() if turned else np.eye(3)
    points = np.concatenate([np.asarray(line, float) @ turn.T for line in lines])
    low, high = points.min(0) - radius, points.max(0) + radius
    axes = [np.arange(a - s * (1 + rng.uniform()), b + 2 * s, s) for a, b, s in zip(low, high, spacing, strict=True)]
    at, tree, step = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1), cKDTree(points), 6
    reach = radius + step * np.linalg.norm(spacing)  # of the first voxel of a cube in which one may be inside
    inside = np.isfinite(tree.query(at[::step, ::step, ::step], distance_upper_bound=reach)[0])
    inside = inside.repeat(step, 0).repeat(step, 1).repeat(step, 2)[tuple(map(slice, at.shape[:3]))]
    inside[inside] = np.isfinite(tree.query(at[inside], distance_upper_bound=radius)[0])
    return crop(inside)


def round_tube(direction, length, radius, size):
    """A tube with round ends: its axis is ``length`` nm long, and it reaches ``radius`` farther at both ends."""
    unit = np.array(direction) / np.linalg.norm(direction)
    reach = np.abs(unit) * length / 2 + radius + np.array(size)
    axes = (np.arange(-np.ceil(r / s), np.ceil(r / s) + 1) * s for r, s in zip(reach, size, strict=True))
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    along = np.clip(places @ unit, -length / 2, length / 2)
    return np.linalg.norm(places - along[..., None] * unit, axis=-1) <= radius


def ball(radius, size):
    return round_tube((0, 0, 1), 0, radius, size)


def straight(start, stop, count=300):
    return np.linspace(start, stop, count)


def arc(radius, angle, count=600):
    t = np.linspace(0, angle, count)
    return np.stack([0 * t, radius * np.cos(t), radius * np.sin(t)], axis=1)


def helix(radius, pitch, turns, count=2000):
    t = np.linspace(0, 2 * np.pi * turns, count)
    return np.stack([pitch * t / (2 * np.pi), radius * np.cos(t), radius * np.sin(t)], axis=1)


def arc_length(line):
    return np.linalg.norm(np.diff(line, axis=0), axis=1).sum()


def centreline(mask, spacing, cut=WHOLE):
    return shape_centreline(smooth_shape(mask, spacing, cut))


def surface_area(mask, spacing, cut=WHOLE):
    shape = smooth_shape(mask, spacing, cut)
    return mesh_area(shape, *shape_mesh(shape))
