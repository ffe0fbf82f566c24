"""Bodies painted into the cells: mitochondria, and what has their grey without being one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mitoseg.datasets.synthetic.noise import FloatArray, Grid
from mitoseg.datasets.synthetic.presets import Greys
from mitoseg.datasets.synthetic.shapes import Body
from mitoseg.geometry import Box

InstanceArray = npt.NDArray[np.uint16]


def paint_bodies(
    image_zyx: FloatArray,
    bodies: tuple[Body, ...],
    grid: Grid,
    greys: Greys,
    noise: tuple[FloatArray, FloatArray],
) -> InstanceArray:
    """Paint every body into the image and number the mitochondria.

    Args:
        image_zyx: Greys, changed in place.
        bodies: What to paint.
        grid: The voxels.
        greys: Grey levels.
        noise: Fine and broad noise on the voxels, unit variance.

    Returns:
        ``instances_zyx``: 0, or the mitochondrion's number from 1, in the order of the bodies.
    """
    instances_zyx = np.zeros(grid.shape, np.uint16)
    number = 0
    for body in bodies:
        box = grid.box_around(body.centre, body.reach)
        positions = grid.voxel_positions(box)
        distance = body.distance(positions)
        inside = distance <= 0
        if not inside.any():  # or the box is empty
            continue
        grain, broad = noise[0][box.slices], noise[1][box.slices]
        if body.kind == "mitochondrion":
            number += 1
            instances_zyx[box.slices][inside] = number
            look = _mitochondrion(body, distance, positions, broad, greys) + 2.5 * grain
        elif body.kind == "lysosome":
            look = _lysosome(body, distance, grain, broad, greys)
        else:
            look = _multivesicular(body, distance, grid, box, grain, greys)
        np.copyto(image_zyx[box.slices], look.astype(np.float32), where=inside)
    return instances_zyx


def _line(distance: FloatArray, at: float, width: float) -> FloatArray:
    """A Gaussian ridge, 1 at ``distance == at``."""
    t = (distance - np.float32(at)) * np.float32(1 / width)
    line: FloatArray = np.exp(np.float32(-0.5) * t * t)
    return line


def _mitochondrion(
    body: Body,
    distance: FloatArray,
    positions: tuple[FloatArray, FloatArray, FloatArray],
    broad: FloatArray,
    greys: Greys,
) -> FloatArray:
    """Two membranes with a light gap, a dark matrix, and cristae across or along it."""
    u, v, w = body.local(positions)
    across = v - np.float32(body.bend) * u * u
    turn = np.float32(2 * np.pi / body.cristae_period)
    if body.tubular:
        waves = np.sin(turn * u + 1.6 * broad) + np.sin(turn * across - 1.3 * broad) + np.sin(turn * w + broad)
        cristae = np.clip(waves, -1.6, 1.6) * np.float32(0.75)
    else:
        a, b, c = (np.float32(t) for t in body.cristae_tilt)
        cristae = np.cos(turn * (a * u + b * across + c * w) + np.float32(1.3) * broad)
        # branches between the lamellae: seen where the lamellae lie in the plane of the section
        cristae += np.float32(0.45) * np.cos(turn * (a * across - b * u) - 2 * broad)
        cristae += np.float32(0.45) * np.cos(turn * (a * w - c * u) + 2 * broad)
    # lamellae end inside the matrix here and there
    present = np.clip(np.float32(0.85) + np.float32(0.25) * broad, 0.5, 1.0)
    deep = np.clip((-distance - 20) * np.float32(1 / 15), 0, 1)
    look = np.float32(body.grey) + np.float32(greys.cristae) * cristae * present * deep
    outer, inner = _line(distance, -5, 5), _line(distance, -26, 5.5)
    gap = _line(distance, -15, 5)
    look += np.float32(22) * gap
    dark = np.float32(greys.membrane + 12)
    return np.asarray(look + (dark - look) * np.maximum(outer, np.float32(0.85) * inner))


def _lysosome(body: Body, distance: FloatArray, grain: FloatArray, broad: FloatArray, greys: Greys) -> FloatArray:
    """One membrane around dense, clotted contents."""
    look = np.float32(body.grey) + np.float32(0.55 * greys.granules) * grain + np.float32(7) * broad
    return np.asarray(look + (np.float32(greys.membrane + 12) - look) * _line(distance, -5, 5))


def _multivesicular(
    body: Body, distance: FloatArray, grid: Grid, box: Box, grain: FloatArray, greys: Greys
) -> FloatArray:
    """One membrane around small vesicles on a jittered lattice (their centres follow from the body's phases)."""
    u, v, w = body.local(grid.voxel_positions(box))
    pitch = np.float32(2 * np.pi / (58 + 4 * body.phase[0]))
    p0, p1, p2 = (np.float32(p) for p in body.phase)
    waves = (
        np.cos(pitch * u + p0 + np.sin(pitch * 0.31 * v))
        * np.cos(pitch * v + p1 + np.sin(pitch * 0.27 * w))
        * np.cos(pitch * w + p2 + np.sin(pitch * 0.29 * u))
    )
    shells = _line(waves, 0.35, 0.12) * np.float32(-26) + np.clip((waves - np.float32(0.5)) * 3, 0, 1) * 34
    look = np.float32(body.grey) + 4 + shells + np.float32(0.3 * greys.granules) * grain
    return np.asarray(look + (np.float32(greys.membrane + 12) - look) * _line(distance, -5, 5))
