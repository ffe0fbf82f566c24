"""From a probability map to a mask: the steps of `Postprocess`, on an array, or by `clean_volume` at any size.

Min_mean (0.80), watershed and z_median (9) are what the published re-implementation does after the block CNN; what
each step gains is measured by ``benchmarks/postprocessing.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cc3d
import edt
import fill_voids
import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation, binary_erosion, binary_opening, gaussian_filter, label, uniform_filter1d
from scipy.special import expit, logit
from skimage.feature import canny
from skimage.filters import sobel
from skimage.morphology import disk
from skimage.segmentation import watershed

from mitoseg.control_groups import memory_available
from mitoseg.engines import Engine, LocalEngine, one_at_a_time
from mitoseg.errors import UserError, is_number
from mitoseg.geometry import Box, tiles
from mitoseg.segmentation.blockwise import (
    CHUNK,
    Joiner,
    Labels,
    Objects,
    known_spacing,
    least_voxels,
    relabel_block,
    store,
    summarize_block,
    touches_border,
)
from mitoseg.volumes.base import Array, DerivedVolume, Volume, mask_volume

BLOCK = (64, 512, 512)  # voxels (z, y, x) that `clean_volume` cleans at once
IN_MEMORY = 2**28  # voxels up to which its masks stay in memory, where the engine is this process
BYTES = 24  # memory that a voxel takes at most, with all steps on
ITERATIONS = 5  # of the mean field; more change nothing that is seen


@dataclass(frozen=True)
class Postprocess:
    """The steps that are on, in their order; None or False leaves one out."""

    smooth: float | None = None  # Gaussian filter of the probability: standard deviation in nm
    smoothness: float | None = None  # weight of pairs of voxels that differ, see `mean_field`
    smoothness_sigma: float = 20.0  # range of the pairs, in nm
    threshold: float | None = None  # instead of the one that comes with the map
    min_mean: float | None = None  # least mean probability of a 2D component
    watershed: int | None = None  # pixels by which a boundary may move to the nearest edge
    z_median: int | None = None  # slices of a median along z, an odd number
    opening: float | None = None  # radius in nm: thin bridges and specks go
    fill_slices: bool = False  # holes within a slice
    fill_holes: bool = False  # holes in 3D
    min_volume: float | None = None  # in nm3: smaller 3D components go

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not isinstance(value, bool) and not (is_number(value) and 0 < value < math.inf):
                raise UserError(f"postprocess.{name} is not above zero", value, "give a larger number, or null")
        for name in ("threshold", "min_mean"):
            if (getattr(self, name) or 0) > 1:
                raise UserError(f"postprocess.{name} is not a probability", getattr(self, name), "give up to 1")
        if self.z_median is not None and (type(self.z_median) is not int or self.z_median % 2 == 0):
            raise UserError("postprocess.z_median is not odd", self.z_median, "give 3, 5, 7, 9, ...")
        if self.watershed is not None and type(self.watershed) is not int:
            raise UserError("postprocess.watershed is not a number of pixels", self.watershed, "give 1, 2, 3, ...")

    def __call__(
        self,
        probability_zyx: Probability,
        threshold: float,
        voxel_size: Sequence[float] | None = None,
        image_zyx: npt.NDArray[np.generic] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """The mask, uint8 of 0 and 1, of a calibrated probability, at and above a threshold.

        Lengths and volumes need the voxel size (z, y, x) in nm. The watershed follows the edges of the EM image;
        without it those of the probability.
        """
        *_, (_, mask_zyx) = self.stages(probability_zyx, threshold, voxel_size, image_zyx)
        return mask_zyx.astype(np.uint8)

    def stages(
        self,
        probability_zyx: Probability,
        threshold: float,
        voxel_size: Sequence[float] | None = None,
        image_zyx: npt.NDArray[np.generic] | None = None,
        *,
        local: bool = False,
    ) -> Iterator[tuple[str, Mask]]:
        """The mask after the threshold and after every further step that is on, with the step's name.

        ``local``: only the steps for which what a voxel becomes depends on no more than `halo` says.
        """
        spacing = self.spacing(voxel_size)
        if not local:
            self.check_memory(probability_zyx.size)
        p = probability_zyx
        if self.smooth is not None:
            p = smooth_probability(p, self.smooth, spacing)
        if self.smoothness is not None:
            p = mean_field(p, self.smoothness, self.smoothness_sigma, spacing, ITERATIONS)
        mask: Mask = p >= (threshold if self.threshold is None else self.threshold)
        yield "threshold", mask
        if self.min_mean is not None:
            mask = remove_unsure(mask, p, self.min_mean)
            yield "min_mean", mask
        if self.watershed is not None:
            relief = p if image_zyx is None else image_zyx
            mask = refine_boundaries(mask, relief, radius=self.watershed, is_image=image_zyx is not None)
            yield "watershed", mask
        if self.z_median is not None:
            votes = uniform_filter1d(mask.astype(np.float32), self.z_median, axis=0, mode="nearest")
            mask = votes > 0.5
            yield "z_median", mask
        if self.opening is not None:
            mask = opening(mask, self.opening, spacing)
            yield "opening", mask
        if self.fill_slices:
            filled = [fill_voids.fill(np.ascontiguousarray(mask_yx)).astype(bool) for mask_yx in mask]
            mask = np.stack(filled)
            yield "fill_slices", mask
        if self.fill_holes and not local:  # background enclosed on all sides; what reaches the volume's border stays
            mask = fill_voids.fill(np.ascontiguousarray(mask)).astype(bool)
            yield "fill_holes", mask
        if self.min_volume is not None and not local:
            least = least_voxels(self.min_volume, spacing)
            dusted = cc3d.dust(np.ascontiguousarray(mask), threshold=least, connectivity=26, in_place=False)
            yield "min_volume", dusted.astype(bool)

    @property
    def by_slice(self) -> bool:
        """Whether a step needs whole slices."""
        return self.min_mean is not None or self.watershed is not None or self.fill_slices

    def halo(self, spacing: Sequence[float]) -> tuple[int, int, int]:
        """Voxels (z, y, x) around a box that local `stages` depend on; along y and x, unless `by_slice`."""
        reach = [0, 0, 0]
        for axis, size in enumerate(spacing):
            if self.smooth is not None:
                reach[axis] += filter_radius(self.smooth, size)
            if self.smoothness is not None:
                reach[axis] += ITERATIONS * filter_radius(self.smoothness_sigma, size)
            if self.opening is not None:  # a distance for the core, and another one back
                reach[axis] += 2 * (math.ceil(self.opening / size) + 1)
        reach[0] += 0 if self.z_median is None else self.z_median // 2
        return (reach[0], reach[1], reach[2])

    def spacing(self, voxel_size: Sequence[float] | None) -> Sequence[float]:
        """The voxel size (z, y, x) in nm, or ones where no step needs it."""
        in_nm = [n for n in ("smooth", "smoothness", "opening", "min_volume") if getattr(self, n) is not None]
        return known_spacing(voxel_size, [f"postprocess.{name}" for name in in_nm])

    def check_memory(self, voxels: int, engine: Engine | None = None) -> None:
        """Refuse to work on more voxels at once than there is memory for, or than an engine may use."""
        if voxels * BYTES > min(memory_available(), engine.item_bytes if engine else math.inf):
            what = f"post-processing holds {voxels} voxels at once: too little memory"
            remedy = "give more memory=, postprocess=none, or fewer steps"
            raise UserError(what, f"{voxels * BYTES / 1e9:.1f} GB", remedy)


CLEAN = Postprocess(smooth=20.0, fill_holes=True, min_volume=1.0e6)
"""What ``postprocess=clean`` does; `conf/postprocess/clean.yaml` holds the same."""
Probability = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
TRUNCATE = 3.0  # standard deviations at which a Gaussian filter ends
_SURE = 1e-4  # probabilities closer to 0 and 1 have the log-odds of this one


def filter_radius(sigma: float, voxel_size: float) -> int:
    """Voxels on each side that the Gaussian filters of this module weigh."""
    return int(TRUNCATE * sigma / voxel_size + 0.5)


def smooth_probability(probability_zyx: Probability, sigma: float, voxel_size: Sequence[float]) -> Probability:
    """Gaussian filter with a standard deviation of ``sigma`` nm."""
    result: Probability = gaussian_filter(
        probability_zyx, [sigma / v for v in voxel_size], mode="nearest", truncate=TRUNCATE
    )
    return result


def mean_field(
    probability_zyx: Probability, weight: float, sigma: float, voxel_size: Sequence[float], iterations: int
) -> Probability:
    r"""Conditional random field whose voxels agree with their neighbours, by mean-field iterations.

    The energy is the sum of the unary terms -log p and, over pairs of voxels, of ``weight * k(d)`` where the labels
    differ, with a Gaussian kernel k of their distance, normalised to a sum of 1. The mean field of this fully
    connected model (Krähenbühl and Koltun, NIPS 2011, with the smoothness kernel alone) is

        logit q  <-  logit p + 2 weight (k * (q - 1/2)),

    which costs one Gaussian filter an iteration, however large the kernel. A graph cut would find the minimum of the
    same energy between nearest neighbours; it needs a GPL library, and memory for an edge of every pair.
    """
    unary = logit(np.clip(probability_zyx, _SURE, 1 - _SURE))
    q = probability_zyx
    for _ in range(iterations):
        q = expit(unary + 2 * weight * (smooth_probability(q, sigma, voxel_size) - np.float32(0.5)))
    return q


def opening(mask_zyx: Mask, radius: float, voxel_size: Sequence[float]) -> Mask:
    """Opening with a ball of ``radius`` nm, by exact Euclidean distances; beyond the border the mask goes on."""
    spacing: dict[str, Any] = {"anisotropy": tuple(voxel_size), "black_border": False, "parallel": 0}
    core_zyx = edt.edt(np.ascontiguousarray(mask_zyx), **spacing) > radius
    if not core_zyx.any():
        return np.zeros_like(mask_zyx)
    near: Mask = edt.edt(~core_zyx, **spacing) <= radius
    return near & mask_zyx


def refine_boundaries(mask_zyx: Mask, relief_zyx: npt.NDArray[np.generic], *, radius: int, is_image: bool) -> Mask:
    """Move the boundary of each slice to the nearest ridge, by at most ``radius`` pixels.

    Surely inside is the opened mask, eroded (all of a component that is thinner); surely outside is the background of
    the opened mask, dilated. Between them a watershed is flooded from both. Ridges are the Canny edges of an image, or
    the gradient of a probability.
    """
    refined_zyx, ball = np.zeros_like(mask_zyx), disk(radius)  # type: ignore[no-untyped-call]
    for z in np.flatnonzero(mask_zyx.any(axis=(1, 2))):
        relief_yx, opened_yx = relief_zyx[z].astype(np.float32), binary_opening(mask_zyx[z], ball)
        inside_yx = binary_erosion(opened_yx, ball, border_value=1)
        component_yx, count = label(opened_yx)
        survives = np.zeros(count + 1, bool)
        survives[np.unique(component_yx[inside_yx])] = True
        inside_yx |= opened_yx & ~survives[component_yx]
        marker_yx = np.where(inside_yx, 2, np.where(binary_dilation(opened_yx, ball), 0, 1))
        if is_image:  # Canny's thresholds are shares of the range of grey values
            low, high = float(relief_yx.min()), float(relief_yx.max())
            unit_yx = (relief_yx - low) / (high - low) if high > low else np.zeros_like(relief_yx)
            ridges_yx = canny(unit_yx, sigma=2).astype(np.float32)  # type: ignore[no-untyped-call]
        else:
            ridges_yx = sobel(relief_yx)  # type: ignore[no-untyped-call]
        refined_zyx[z] = watershed(ridges_yx, marker_yx) == 2  # type: ignore[no-untyped-call]
    return refined_zyx


def remove_unsure(mask_zyx: Mask, probability_zyx: npt.NDArray[np.float32], least: float) -> Mask:
    """Take away the 2D components of each slice whose mean probability is below ``least``."""
    kept_zyx = np.empty_like(mask_zyx)
    for mask_yx, probability_yx, kept_yx in zip(mask_zyx, probability_zyx, kept_zyx, strict=True):
        label_yx = cc3d.connected_components(np.ascontiguousarray(mask_yx), connectivity=8)
        count = np.bincount(label_yx.ravel())
        total = np.bincount(label_yx.ravel(), weights=probability_yx.ravel())
        sure = total >= least * count
        sure[0] = False
        kept_yx[:] = sure[label_yx]
    return kept_zyx


def clean_volume(
    probability: Volume,
    threshold: float,
    *,
    steps: Postprocess,
    folder: Path,
    scale: float = 1.0,
    voxel_size: Sequence[float] | None = None,
    image: Volume | None = None,
    engine: Engine | None = None,
    block: tuple[int, int, int] = BLOCK,
    in_memory: int = IN_MEMORY,
    on_box: Callable[[Box], None] | None = None,
) -> Volume:
    """`Postprocess` of a volume that is too large for memory, block by block, to the same result.

    Local steps see a block and the halo around it; those that need whole slices (min_mean, watershed, fill_slices) get
    blocks of whole slices. For fill_holes and min_volume components are joined across blocks.

    The mask is a volume of uint8, 0 and 1. Masks of more than ``in_memory`` voxels, and all where the engine (started;
    None: this process) has other processes, go into ``folder``, which these must see. The probability is stored times
    ``scale``. ``block`` (z, y, x) does not change the result; ``on_box`` takes each block that the first pass is done
    with.
    """
    spacing = steps.spacing(voxel_size)
    halo, size = steps.halo(spacing), block
    if steps.by_slice:  # as many voxels in whole slices, not much thinner than the halo
        _, y, x = probability.shape
        slices = max(math.prod(block) // (y * x), 2 * halo[0], 1)
        size = (slices - slices % CHUNK[0] or slices, y, x)
    whole = max((part.grow(halo).clip(probability.box).size for part in tiles(probability.box, size)), default=0)
    steps.check_memory(whole, engine)

    def components(mask: Volume, connectivity: int) -> tuple[Objects, dict[Box, Labels]]:
        joiner, function = Joiner(), partial(summarize_block, mask, connectivity=connectivity)
        (engine or LocalEngine()).map(function, tiles(mask.box, block), lambda _, summary: joiner.add(summary))
        return joiner.finish()

    stages = partial(steps.stages, threshold=threshold, voxel_size=spacing, local=True)
    local = _Local(probability, None if steps.watershed is None else image, halo, scale, stages)
    keep = partial(store, engine=engine, in_memory=in_memory)
    mask = keep(local, size, folder / "local.zarr", on_block=on_box)
    if steps.fill_holes:
        outside = mask_volume(mask, np.logical_not)
        objects, tables = components(outside, 6)
        hole = ~touches_border(objects, mask.shape)
        if hole.any():
            mask = keep(_Chosen(outside, _of_labels(hole, tables), 6, mask), block, folder / "filled.zarr")
    if steps.min_volume is not None:
        objects, tables = components(mask, 26)
        large = objects["voxels"] >= least_voxels(steps.min_volume, spacing)
        if not large.all():
            mask = keep(_Chosen(mask, _of_labels(large, tables), 26), block, folder / "large.zarr")
    return mask


def _of_labels(chosen: Mask, tables: Mapping[Box, Labels]) -> dict[Box, Mask]:
    """For each block, which of its labels are among the chosen objects; 0 is not."""
    of_objects = np.concatenate([[False], chosen])
    return {block: of_objects[table] for block, table in tables.items()}


_MASK: dict[str, Any] = {"dtype": np.dtype(np.uint8), "metadata": {"kind": "mask"}}


class _Local(DerivedVolume):
    """What the steps that need no more than a halo make of a probability; for the halo see `Postprocess.halo`."""

    def __init__(
        self,
        probability: Volume,
        image: Volume | None,
        halo: tuple[int, int, int],
        scale: float,
        stages: Callable[..., Iterator[tuple[str, Mask]]],
    ) -> None:
        super().__init__(probability, **_MASK)
        self._image, self._halo, self._scale, self._stages = image, halo, scale, stages

    def _read(self, box: Box) -> Array:
        read = box.grow(self._halo).clip(self.box)
        stored_zyx = self.volume.read(read)
        image_zyx = None if self._image is None else self._image.read(read)
        with one_at_a_time():
            stages = list(self._stages(stored_zyx.astype(np.float32) / np.float32(self._scale), image_zyx=image_zyx))
            return stages[-1][1][box.inside(read).slices].astype(np.uint8)


class _Chosen(DerivedVolume):
    """The components of a mask whose labels are chosen in each block, with what is set in ``onto``.

    It is read along the grid of blocks that the components were found in.
    """

    def __init__(
        self, mask: Volume, chosen: Mapping[Box, Mask], connectivity: int, onto: Volume | None = None
    ) -> None:
        super().__init__(mask, **_MASK)
        self._chosen, self._connectivity, self._onto = chosen, connectivity, onto

    def part(self, box: Box) -> Volume:
        return _Chosen(self.volume, {box: self._chosen[box]}, self._connectivity, self._onto)

    def _read(self, box: Box) -> Array:
        chosen_zyx = relabel_block(self.volume, box, self._chosen[box], self._connectivity)
        if self._onto is not None:
            chosen_zyx |= self._onto.read(box).astype(bool)
        return chosen_zyx.astype(np.uint8)
