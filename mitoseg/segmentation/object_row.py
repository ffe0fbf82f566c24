"""One mitochondrion's row of the table, from the crop round it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mitoseg.geometry import Box
from mitoseg.segmentation.census import STARTS, STOPS
from mitoseg.segmentation.centreline import Centreline, shape_centreline
from mitoseg.segmentation.moments import Moments, moments
from mitoseg.segmentation.smooth_shape import Mask, blur, smooth_shape
from mitoseg.segmentation.surface import mesh_area, shape_mesh
from mitoseg.segmentation.texture import cristae_texture
from mitoseg.volumes import Array

FEW_VOXELS = 30
"""Objects of fewer have no centreline: their length and diameter are those of a box."""
THIN = 2.0
"""So have those whose middle axis is shorter than this many standard deviations of the surface's blur."""
SHAPE = [
    *("instance", "voxels", "volume_nm3", "surface_nm2", "sphericity"),
    *("axis_long_nm", "axis_middle_nm", "axis_short_nm"),
    *("length_nm", "diameter_mean_nm", "diameter_max_nm", "tortuosity", "branches", "complexity"),
    *("centroid_z_nm", "centroid_y_nm", "centroid_x_nm"),
    *(*STARTS, *STOPS, "touches_border"),
]
IMAGE = ["grey_mean", "grey_sd", "cristae_sd", "cristae_share"]


def column_names(*, image: bool, probability: bool, uncertainty: bool = False) -> list[str]:
    """The columns of a row, given what is measured beside the shape."""
    more = (["probability_mean"] if probability else []) + (["uncertainty"] if probability or uncertainty else [])
    return SHAPE + (IMAGE if image else []) + more


def object_row(
    instance: int,
    crop: Mapping[str, Array],
    box: Box,
    outer: Box,
    shape: Sequence[int],
    voxel_size: Sequence[float],
) -> dict[str, object]:
    """All of one object's measures.

    Args:
        instance: Its number.
        crop: ``labels`` and, as given, ``image``, ``probability``, ``uncertainty``, all of ``outer``.
        box: Of the object in the volume.
        outer: The same or larger: what the texture's filter reaches to.
        shape: Of the volume (z, y, x); an object that touches its faces is cut off there.
        voxel_size: (z, y, x) in nm.

    Returns:
        The columns of `column_names`.
    """
    around_zyx = crop["labels"] == instance
    inner = box.inside(outer).slices
    mask_zyx = np.ascontiguousarray(around_zyx[inner])
    row = {"instance": instance} | shape_columns(mask_zyx, box, shape, voxel_size)
    if "image" in crop:
        grey = crop["image"][inner][mask_zyx].astype(np.float64)
        texture = cristae_texture(crop["image"], around_zyx, voxel_size)
        values = (float(grey.mean()), float(grey.std()), texture.grey, texture.share)
        row |= dict(zip(IMAGE, values, strict=True))
    if "probability" in crop:
        p = crop["probability"][inner][mask_zyx].astype(np.float64)
        row |= {"probability_mean": float(p.mean()), "uncertainty": binary_entropy(p)}
    if "uncertainty" in crop:
        row["uncertainty"] = float(crop["uncertainty"][inner][mask_zyx].mean(dtype=np.float64))
    return row


def shape_columns(mask_zyx: Mask, box: Box, shape: Sequence[int], voxel_size: Sequence[float]) -> dict[str, object]:
    """The measures that need no more than the object's mask in its bounding box."""
    cut = [(a == 0, b == n) for a, b, n in zip(box.start, box.stop, shape, strict=True)]
    voxels = int(np.count_nonzero(mask_zyx))
    volume = voxels * math.prod(voxel_size)
    smooth = smooth_shape(mask_zyx, voxel_size, cut)
    mesh = shape_mesh(smooth)
    surface = mesh_area(smooth, *mesh)
    solid = moments(mask_zyx, voxel_size)
    small = voxels < FEW_VOXELS or solid.axes[1] < THIN * blur(voxel_size)
    line = small_line(solid) if small else shape_centreline(smooth, mesh[0])
    cut_off = any(map(any, cut))
    centre = [m + a * v for m, a, v in zip(solid.centroid, box.start, voxel_size, strict=True)]
    return {
        "voxels": voxels,
        "volume_nm3": volume,
        "surface_nm2": surface,
        "sphericity": math.nan if cut_off else math.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / surface,
        **dict(zip(("axis_long_nm", "axis_middle_nm", "axis_short_nm"), solid.axes, strict=True)),
        "length_nm": line.length,
        "diameter_mean_nm": line.diameter_mean,
        "diameter_max_nm": line.diameter_max,
        "tortuosity": line.tortuosity,
        "branches": line.branches,
        "complexity": math.nan if cut_off else surface**3 / (16 * math.pi**2 * volume**2),
        **dict(zip(("centroid_z_nm", "centroid_y_nm", "centroid_x_nm"), centre, strict=True)),
        **dict(zip(STARTS, box.start, strict=True)),
        **dict(zip(STOPS, box.stop, strict=True)),
        "touches_border": cut_off,
    }


def small_line(solid: Moments) -> Centreline:
    """In place of a centreline: the longest side of the box of the same moments, and the mean of the other two."""
    length, *others = solid.sides
    across = sum(others) / 2
    return Centreline(length, length, across, across, 0)


def binary_entropy(p: npt.NDArray[np.float64]) -> float:
    """Mean of -p log2 p - (1 - p) log2(1 - p) in bits: 0 where the network is sure, 1 where it says 0.5.

    >>> binary_entropy(np.array([0.0, 0.5, 1.0, 0.5]))
    0.5
    """
    q = np.stack([p, 1 - p]).clip(0, 1)
    terms = -q * np.log2(q, where=q > 0, out=np.zeros_like(q))
    return float(terms.sum(axis=0).mean())
