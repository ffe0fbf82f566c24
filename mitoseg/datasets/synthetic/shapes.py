r"""Bodies and neurites as parameters, and their signed distances.

A body (mitochondrion, lysosome, multivesicular body) is a bent tube with round ends, or a ball where its straight
part is short. In its own frame, u along the axis:

         ___________________
       /                     \        v' = v - bend * u^2
      |  <---- half_length ---> |     d  = |(max(|u| - half_length, 0), v', w * flat)| - radius(u)
       \ ___________________ /        radius(u) = radius * (1 + waist * cos(u / wave + phase)) + wobble
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mitoseg.datasets.synthetic.noise import FloatArray

Positions = tuple[FloatArray, FloatArray, FloatArray]
Vector = tuple[float, float, float]


def part_of(positions: Positions, part: tuple[slice, slice, slice]) -> Positions:
    """Positions of a part of the grid, for open and for full meshes."""
    z, y, x = (p[tuple(slice(None) if n == 1 else s for n, s in zip(p.shape, part, strict=True))] for p in positions)
    return z, y, x


def along(axis: Vector, offsets: Positions) -> FloatArray:
    """Component of offsets (an open or full mesh) along a unit vector."""
    parts = [np.float32(a) * offset for a, offset in zip(axis, offsets, strict=True)]
    total: FloatArray = parts[0] + parts[1] + parts[2]
    return total


@dataclass(frozen=True)
class Body:
    """A large organelle; lengths in nm, vectors in (z, y, x).

    Attributes:
        kind: "mitochondrion", "lysosome" or "multivesicular".
        centre: Its middle.
        frame: Three unit vectors: the axis u, then v and w across.
        radius: Of the tube.
        half_length: Half the length of the straight part.
        flat: Radius over the radius along w.
        bend: Curvature of the axis, 1/nm.
        waist: Depth of the constrictions, as a share of the radius.
        phase: Where the constrictions lie, and the phases of the uneven outline.
        grey: Its mean.
        cristae_tilt: Direction across the cristae, in the body's frame.
        cristae_period: From one crista to the next.
        tubular: Cristae are tubes, not lamellae.
    """

    kind: str
    centre: Vector
    frame: tuple[Vector, Vector, Vector]
    radius: float
    half_length: float
    flat: float
    bend: float
    waist: float
    phase: Vector
    grey: float
    cristae_tilt: Vector = (1.0, 0.0, 0.0)
    cristae_period: float = 45.0
    tubular: bool = False

    @property
    def reach(self) -> float:
        """No part of the body lies farther from its centre than this, in nm."""
        return self.half_length + 1.5 * self.radius + abs(self.bend) * (self.half_length + self.radius) ** 2

    def local(self, positions: Positions) -> Positions:
        """Positions in the body's frame (u, v, w)."""
        dz, dy, dx = (p - np.float32(c) for p, c in zip(positions, self.centre, strict=True))
        u, v, w = (along(axis, (dz, dy, dx)) for axis in self.frame)
        return u, v, w

    def distance(self, positions: Positions) -> FloatArray:
        """Signed distance to the surface in nm, negative inside (exact for a straight round tube)."""
        u, v, w = self.local(positions)
        wave = np.float32(2.2 * self.radius)
        p0, p1, p2 = (np.float32(p) for p in self.phase)
        radius = np.float32(self.radius) * (1 + np.float32(self.waist) * np.cos(u / wave + p0))
        radius += np.float32(0.06 * self.radius) * np.sin(v / (0.45 * wave) + p1 + u / wave)
        radius += np.float32(0.05 * self.radius) * np.sin(w / (0.4 * wave) + p2 - u / wave)
        beyond = np.maximum(np.abs(u) - np.float32(self.half_length), 0)
        across = v - np.float32(self.bend) * u * u
        distance: FloatArray = np.sqrt(beyond * beyond + across * across + (w * np.float32(self.flat)) ** 2) - radius
        return distance


@dataclass(frozen=True)
class Neurite:
    """A cell's process: a straight tube with round ends, bent by the tissue's warp. Lengths in nm.

    Attributes:
        centre: Its middle.
        axis: Unit vector (z, y, x).
        radius: Of the tube.
        half_length: Half the length of its straight part.
        grey: Mean of its cytoplasm when it is light.
        grain: How coarse its cytoplasm looks, about 1.
        sheath: Thickness its myelin would have.
    """

    centre: Vector
    axis: Vector
    radius: float
    half_length: float
    grey: float
    grain: float
    sheath: float

    def distance(self, positions: Positions) -> FloatArray:
        """Signed distance to the tube, negative inside."""
        dz, dy, dx = (p - np.float32(c) for p, c in zip(positions, self.centre, strict=True))
        ahead = along(self.axis, (dz, dy, dx))
        across2 = dz * dz + dy * dy + dx * dx
        across2 -= ahead * ahead
        beyond = np.maximum(np.abs(ahead) - np.float32(self.half_length), 0)
        across2 += beyond * beyond
        distance: FloatArray = np.sqrt(np.maximum(across2, 0, out=across2), out=across2)
        distance -= np.float32(self.radius)
        return distance

    def around(self, reach: float) -> Vector:
        """How far along z, y and x the places within ``reach`` of the tube lie from its centre."""
        z, y, x = (self.half_length * abs(a) + self.radius + reach for a in self.axis)
        return z, y, x


def random_axis(rng: np.random.Generator) -> Vector:
    """A direction uniform on the sphere."""
    while True:
        z, y, x = rng.uniform(-1, 1, 3).tolist()
        norm = (z * z + y * y + x * x) ** 0.5
        if 0.1 < norm < 1:
            return z / norm, y / norm, x / norm


def random_frame(rng: np.random.Generator) -> tuple[Vector, Vector, Vector]:
    """Three orthogonal unit vectors, the first uniform on the sphere."""
    u, t = np.array(random_axis(rng)), np.array(random_axis(rng))
    while abs(float((u * t).sum())) > 0.95:
        t = np.array(random_axis(rng))
    v = np.cross(u, t)
    v /= np.sqrt((v * v).sum())
    w = np.cross(u, v)
    frame = [(float(a[0]), float(a[1]), float(a[2])) for a in (u, v, w)]
    return frame[0], frame[1], frame[2]
