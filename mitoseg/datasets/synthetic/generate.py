"""From a seed to a volume: plan the scene, cut the cells, paint, and take the picture as a microscope would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mitoseg.datasets.synthetic.presets import Microscope, Preset, get_preset
from mitoseg.datasets.synthetic.scene import (
    SPACING,
    Cells,
    FloatArray,
    Grid,
    InstanceArray,
    Neurite,
    paint_bodies,
    paint_small,
    partition,
    plan_scene,
    smooth_noise,
    warped,
)
from mitoseg.errors import UserError

Scalar = TypeVar("Scalar", bound=np.generic)
ByteArray = npt.NDArray[np.uint8]
VERSION = 1  # raised whenever the same seed gives other voxels
SMALLEST = (3, 64, 64)


def generate_phantom(
    shape_zyx: Sequence[int], seed: int, preset: str | Preset = "fibsem"
) -> tuple[ByteArray, ByteArray, InstanceArray]:
    """Make a phantom: an EM-like volume of at least (3, 64, 64) voxels, its mitochondria, and their numbers.

    The same arguments give the same bytes, whatever the number of threads; two seeds (0 or more) share no object. The
    preset is a name of `PRESETS`, or one of your own.

    Returns:
        ``image_zyx`` uint8, ``label_zyx`` uint8 (0, 1 mitochondrion) and ``instances_zyx`` uint16 (0, 1 ... n).
    """
    chosen = get_preset(preset) if isinstance(preset, str) else preset
    shape = checked_shape(shape_zyx)
    sequences = seed_sequences(seed)
    margin = chosen.microscope.shift
    grid = Grid.spaced((shape[0], shape[1] + 2 * margin, shape[2] + 2 * margin), chosen.voxel_nm, SPACING)
    bodies, neurites = plan_scene(grid, chosen, np.random.default_rng(sequences[0]))
    cells = partition(grid, bodies, neurites, warped(grid, sequences[1]))
    rng = np.random.default_rng(sequences[2])
    noise = smooth_noise(grid, 30, rng), smooth_noise(grid, 90, rng)  # the grain of cytoplasm, and a broader one
    grey_zyx = _paint_cells(neurites, len(bodies), cells, noise, chosen, rng)
    paint_small(grey_zyx, cells, grid, chosen, rng)
    instances_zyx = paint_bodies(grey_zyx, bodies, grid, chosen.greys, noise)
    camera = np.random.default_rng(sequences[3])
    if margin:
        offsets = section_offsets(shape[0], margin, camera)
        grey_zyx = shift_sections(grey_zyx, offsets, margin)
        instances_zyx = shift_sections(instances_zyx, offsets, margin)
    image_zyx = expose(grey_zyx, Grid(shape, grid.voxel_nm, grid.factors), chosen.microscope, camera)
    present = np.bincount(instances_zyx.ravel()) > 0  # sections that moved may have left one out
    present[0] = False
    numbers = np.where(present, np.cumsum(present), 0).astype(np.uint16)
    return image_zyx, (instances_zyx > 0).astype(np.uint8), numbers[instances_zyx]


def seed_sequences(seed: int) -> list[np.random.SeedSequence]:
    """Independent sources of randomness of a phantom: scene, warp, paint and camera."""
    if seed < 0:
        raise UserError("the phantom's seed is negative", seed, "give 0 or more")
    return np.random.SeedSequence([VERSION, seed]).spawn(4)


def checked_shape(shape_zyx: Sequence[int], name: str = "shape") -> tuple[int, ...]:
    """The shape of a phantom as integers."""
    if len(shape_zyx) != 3 or any(n < least for n, least in zip(shape_zyx, SMALLEST, strict=False)):
        remedy = f"give (z, y, x) voxels, at least {SMALLEST}"
        raise UserError(f"cannot make a phantom of this {name}", tuple(shape_zyx), remedy)
    return tuple(int(n) for n in shape_zyx)


def _paint_cells(
    neurites: list[Neurite],
    owners: int,
    cells: Cells,
    noise: tuple[FloatArray, FloatArray],
    preset: Preset,
    rng: np.random.Generator,
) -> FloatArray:
    """Cytoplasm, membranes, myelin and the gap between the cells; the first ``owners`` hold a body."""
    greys, tissue = preset.greys, preset.tissue
    base = np.array([greys.gap, *(n.grey for n in neurites)], np.float32)  # by cell, as what follows
    granules = np.array([0, *(greys.granules * n.grain for n in neurites)], np.float32)
    sheath = np.zeros(len(neurites) + 1, np.float32)
    dark = myelinated = 0.0
    for cell in (1 + owners + rng.permutation(len(neurites) - owners)).tolist():
        share = float(cells.shares[cell])
        if dark + share < 1.1 * tissue.dark_cells:
            dark += share
            base[cell] = rng.normal(greys.dark, greys.spread)
            granules[cell] *= 0.5  # dense cytoplasm is more even than light cytoplasm
        elif myelinated + share < 1.1 * tissue.myelinated and share > 0.004:
            myelinated += share
            sheath[cell] = neurites[cell - 1].sheath
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


def expose(grey_zyx: FloatArray, grid: Grid, microscope: Microscope, rng: np.random.Generator) -> ByteArray:
    """Take the picture."""
    image = ndimage.gaussian_filter(grey_zyx, microscope.blur, mode="nearest", truncate=3.0)
    depth, _, width = image.shape
    if microscope.charging:  # a glow that trails bright places along the scan line, on some sections more than others
        bright = np.maximum(image - np.float32(165), 0) * np.float32(1 / 20)
        glow = ndimage.gaussian_filter(bright, (0, 2.0, 2.0), truncate=2.5)
        trail = ndimage.uniform_filter1d(glow, 96, axis=2, origin=40, mode="nearest")
        per_slice = rng.gamma(0.8, microscope.charging / 3, (depth, 1, 1)).astype(np.float32)
        image += np.minimum(per_slice, np.float32(microscope.charging)) * (trail - trail.mean())
    image *= 1 + np.float32(microscope.shading) * smooth_noise(grid, 3000, rng)
    image += rng.normal(0, microscope.jitter, (depth, 1, 1)).astype(np.float32)
    if microscope.curtains:
        streaks = rng.standard_normal((depth + 8, 1, width)).astype(np.float32)
        streaks = ndimage.gaussian_filter(streaks, (3.0, 0, 1.0))[4:-4]
        image += np.float32(microscope.curtains) * streaks / streaks.std()
    # the sum of both noises has variance shot^2 * signal / 128 + detector^2
    variance = image * np.float32(microscope.shot**2 / 128) + np.float32(microscope.detector**2)
    np.sqrt(np.maximum(variance, 1, out=variance), out=variance)
    variance *= rng.standard_normal(image.shape, dtype=np.float32)
    image += variance
    image_zyx: ByteArray = np.clip(np.rint(image, out=image), 0, 255, out=image).astype(np.uint8)
    return image_zyx


def section_offsets(depth: int, largest: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Where each section lies, (depth, 2) voxels in y and x from 0 to ``2 * largest``: a walk that is held back."""
    offsets = np.full((depth, 2), largest, np.intp)
    place = np.zeros(2)
    for z in range(depth):
        place = 0.8 * place + rng.normal(0, 0.45 * largest, 2)
        offsets[z] += np.clip(np.rint(place), -largest, largest).astype(np.intp)
    return offsets


def shift_sections(array_zyx: npt.NDArray[Scalar], offsets: npt.NDArray[np.intp], largest: int) -> npt.NDArray[Scalar]:
    """Cut the sections out of a volume that is ``2 * largest`` wider in y and x, each at its own place."""
    depth, height, width = array_zyx.shape
    out = np.empty((depth, height - 2 * largest, width - 2 * largest), array_zyx.dtype)
    for z, (y, x) in enumerate(offsets):
        out[z] = array_zyx[z, y : y + out.shape[1], x : x + out.shape[2]]
    return out
