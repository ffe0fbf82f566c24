"""From a seed to a volume: plan the scene, cut the cells, paint, and take the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mitoseg.datasets.synthetic.imaging import ByteArray, expose, section_offsets, shift_sections
from mitoseg.datasets.synthetic.noise import FloatArray, Grid, smooth_noise
from mitoseg.datasets.synthetic.presets import Preset, get_preset
from mitoseg.datasets.synthetic.scene import (
    SPACING,
    Cells,
    InstanceArray,
    Scene,
    paint_bodies,
    paint_small,
    partition,
    plan_scene,
    warped,
)
from mitoseg.errors import UserError

VERSION = 1
"""Of the generator: raised whenever the same seed gives other voxels."""
SMALLEST = (3, 64, 64)
DENSE_GRAIN = 0.5
"""Dense cytoplasm is more even than light cytoplasm."""


def generate_phantom(
    shape_zyx: Sequence[int], seed: int, preset: str | Preset = "fibsem"
) -> tuple[ByteArray, ByteArray, InstanceArray]:
    """Make a phantom: an EM-like volume, its mitochondria, and their numbers.

    The same arguments give the same bytes, whatever the number of threads; two seeds share no object.

    Args:
        shape_zyx: Voxels along z, y and x, at least (3, 64, 64).
        seed: Not negative.
        preset: A name of `PRESETS`, or a preset of your own.

    Returns:
        ``image_zyx`` uint8, ``label_zyx`` uint8 (0, 1 mitochondrion) and ``instances_zyx`` uint16 (0, 1 ... n).

    Raises:
        UserError: The shape is too small, the seed negative, or the preset unknown.
    """
    chosen = get_preset(preset) if isinstance(preset, str) else preset
    shape = checked_shape(shape_zyx)
    sequences = seed_sequences(seed)
    margin = chosen.microscope.shift
    wide = (shape[0], shape[1] + 2 * margin, shape[2] + 2 * margin)
    grid = Grid.spaced(wide, chosen.voxel_nm, SPACING)
    scene = plan_scene(grid, chosen, np.random.default_rng(sequences[0]))
    cells = partition(scene, warped(grid, sequences[1]))
    rng = np.random.default_rng(sequences[2])
    noise = _grain(grid, rng)
    grey_zyx = _paint_cells(scene, cells, noise, chosen, rng)
    paint_small(grey_zyx, cells, scene, chosen, rng)
    instances_zyx = paint_bodies(grey_zyx, scene.bodies, grid, chosen.greys, noise)
    camera = np.random.default_rng(sequences[3])
    if margin:
        offsets = section_offsets(shape[0], margin, camera)
        grey_zyx = shift_sections(grey_zyx, offsets, margin)
        instances_zyx = shift_sections(instances_zyx, offsets, margin)
    image_zyx = expose(grey_zyx, Grid(shape, grid.voxel_nm, grid.factors), chosen.microscope, camera)
    return image_zyx, (instances_zyx > 0).astype(np.uint8), _renumbered(instances_zyx)


def seed_sequences(seed: int) -> list[np.random.SeedSequence]:
    """Independent sources of randomness of a phantom: scene, warp, paint and camera.

    Raises:
        UserError: The seed is negative.
    """
    if seed < 0:
        raise UserError("the phantom's seed is negative", seed, "give 0 or more")
    return np.random.SeedSequence([VERSION, seed]).spawn(4)


def checked_shape(shape_zyx: Sequence[int]) -> tuple[int, int, int]:
    """The shape of a phantom as integers.

    Raises:
        UserError: Not three axes, or one is too short.
    """
    if len(shape_zyx) != 3 or any(n < least for n, least in zip(shape_zyx, SMALLEST, strict=False)):
        remedy = f"give (z, y, x) voxels, at least {SMALLEST}"
        raise UserError("cannot make a phantom of this shape", tuple(shape_zyx), remedy)
    z, y, x = (int(n) for n in shape_zyx)
    return z, y, x


def _grain(grid: Grid, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """The grain of cytoplasm and a broader noise, both of unit variance."""
    return smooth_noise(grid, 30, rng), smooth_noise(grid, 90, rng)


def _paint_cells(
    scene: Scene, cells: Cells, noise: tuple[FloatArray, FloatArray], preset: Preset, rng: np.random.Generator
) -> FloatArray:
    """Cytoplasm, membranes, myelin and the gap between the cells."""
    greys = preset.greys
    base, granules, sheath = _cell_tables(scene, cells, preset, rng)
    depth, ids = cells.depth_zyx, cells.id_zyx
    grain = noise[0] * np.float32(0.8) + noise[1] * np.float32(0.45)
    # dark specks stand out more than light ones
    grain += np.minimum(grain, 0) * np.float32(0.5)
    image = base[ids] + granules[ids] * grain
    thickness = sheath[ids]
    wrapped = (depth < thickness) & (depth > 14)
    lamellae = np.float32(greys.dark - 4) + 16 * np.cos(depth * np.float32(2 * np.pi / 17))
    image = np.where(wrapped, lamellae + 3 * noise[0], image)
    for centre, strength in ((7.5, 1.0), (thickness + 6, (thickness > 0).astype(np.float32))):
        t = (depth - centre) * np.float32(1 / 4.5)
        image += (np.float32(greys.membrane) - image) * (strength * np.exp(np.float32(-0.5) * t * t))
    image = np.where(depth < 2.5, np.float32(greys.gap), image)
    return np.asarray(image, np.float32)


def _cell_tables(
    scene: Scene, cells: Cells, preset: Preset, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """By cell id: mean and grain of the cytoplasm's grey, and thickness of the myelin (0: none)."""
    count = len(scene.neurites)
    grey = np.array([preset.greys.gap, *(n.grey for n in scene.neurites)], np.float32)
    granules = np.array([0, *(preset.greys.granules * n.grain for n in scene.neurites)], np.float32)
    sheath = np.zeros(count + 1, np.float32)
    free = 1 + len(scene.bodies) + rng.permutation(count - len(scene.bodies))
    dark = myelinated = 0.0
    for cell in free.tolist():
        share = float(cells.shares[cell])
        if dark + share < 1.1 * preset.tissue.dark_cells:
            dark += share
            grey[cell] = rng.normal(preset.greys.dark, preset.greys.spread)
            granules[cell] *= DENSE_GRAIN
        elif myelinated + share < 1.1 * preset.tissue.myelinated and share > 0.004:
            myelinated += share
            sheath[cell] = scene.neurites[cell - 1].sheath
    return grey, granules, sheath


def _renumbered(instances_zyx: InstanceArray) -> InstanceArray:
    """The same instances numbered 1 ... n without holes (sections that moved may have left one out)."""
    present = np.bincount(instances_zyx.ravel()) > 0
    present[0] = False
    table = np.where(present, np.cumsum(present), 0).astype(np.uint16)
    return np.asarray(table[instances_zyx])
