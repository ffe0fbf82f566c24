"""What is done to a probability map until it is a mask, step by step.

    smooth           Gaussian filter of the probability
    smoothness       conditional random field: neighbours agree
    threshold
    min_mean         2D components whose mean probability is too low go
    watershed        boundaries move to the nearest edge
    z_median         median along z
    opening          thin bridges and specks go
    fill_slices      holes within a slice
    fill_holes       holes in 3D
    min_volume       small 3D components go

Min_mean (0.80), watershed and z_median (9) are what the published re-implementation does after the block CNN. Every
step is an option, and what each gains is to be measured on validation: see ``benchmarks/postprocessing.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from mitoseg.control_groups import memory_available
from mitoseg.engines import Engine
from mitoseg.errors import UserError
from mitoseg.segmentation.boundaries import refine_boundaries
from mitoseg.segmentation.components import fill_holes, fill_slices, remove_small, remove_unsure
from mitoseg.segmentation.smoothing import (
    Mask,
    Probability,
    filter_radius,
    mean_field,
    opening,
    smooth_probability,
    z_median,
)

BYTES = 24
"""Memory that a voxel takes at most, with all steps on."""
ITERATIONS = 5
"""Of the mean field; more change nothing that is seen."""


@dataclass(frozen=True)
class Postprocess:
    """The steps that are on; None or False leaves one out.

    Attributes:
        smooth: Standard deviation in nm.
        smoothness: Weight of pairs of voxels, see `mitoseg.segmentation.smoothing.mean_field`.
        smoothness_sigma: Range of the pairs, in nm.
        threshold: Instead of the one that comes with the map.
        min_mean: Least mean probability of a 2D component.
        watershed: Pixels by which a boundary may move.
        z_median: Slices, an odd number.
        opening: Radius in nm.
        fill_slices: Whether holes within a slice are filled.
        fill_holes: Whether holes in 3D are filled.
        min_volume: In nm3.

    Raises:
        UserError: A number is out of range.
    """

    smooth: float | None = None
    smoothness: float | None = None
    smoothness_sigma: float = 20.0
    threshold: float | None = None
    min_mean: float | None = None
    watershed: int | None = None
    z_median: int | None = None
    opening: float | None = None
    fill_slices: bool = False
    fill_holes: bool = False
    min_volume: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or isinstance(value, bool):
                continue
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                raise UserError(f"postprocess.{field.name} is not above zero", value, "give a larger number, or null")
        for name in ("threshold", "min_mean"):
            if (getattr(self, name) or 0) > 1:
                raise UserError(f"postprocess.{name} is not a probability", getattr(self, name), "give up to 1")
        if self.z_median is not None and (type(self.z_median) is not int or self.z_median % 2 == 0):
            raise UserError("postprocess.z_median is not odd", self.z_median, "give 3, 5, 7, 9, ...")
        if self.watershed is not None and type(self.watershed) is not int:
            raise UserError("postprocess.watershed is no number of pixels", self.watershed, "give 1, 2, 3, ...")

    def __call__(
        self,
        probability_zyx: Probability,
        threshold: float,
        voxel_size: Sequence[float] | None = None,
        image_zyx: npt.NDArray[np.generic] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """The mask.

        Args:
            probability_zyx: float32, calibrated.
            threshold: Probability at and above which a voxel is foreground.
            voxel_size: (z, y, x) in nm; lengths and volumes need it.
            image_zyx: The EM image, whose edges the watershed follows; without it those of the probability.

        Returns:
            ``mask_zyx`` uint8 of 0 and 1.

        Raises:
            UserError: A step needs the voxel size, or there is too little memory.
        """
        mask_zyx: Mask | None = None
        for _, mask_zyx in self.stages(probability_zyx, threshold, voxel_size, image_zyx):  # noqa: B007 (the last one)
            pass
        assert mask_zyx is not None
        return mask_zyx.astype(np.uint8)

    def stages(
        self,
        probability_zyx: Probability,
        threshold: float,
        voxel_size: Sequence[float] | None = None,
        image_zyx: npt.NDArray[np.generic] | None = None,
    ) -> Iterator[tuple[str, Mask]]:
        """The mask after the threshold and after every further step that is on, with the step's name."""
        spacing = self.spacing(voxel_size)
        self.check_memory(probability_zyx.size)
        for name, mask in self.local_stages(probability_zyx, threshold, spacing, image_zyx):
            yield name, mask
        if self.fill_holes:
            mask = fill_holes(mask)
            yield "fill_holes", mask
        if self.min_volume is not None:
            mask = remove_small(mask, self.min_volume, math.prod(spacing))
            yield "min_volume", mask

    def local_stages(
        self,
        probability_zyx: Probability,
        threshold: float,
        spacing: Sequence[float],
        image_zyx: npt.NDArray[np.generic] | None = None,
    ) -> Iterator[tuple[str, Mask]]:
        """`stages` up to those that need the whole volume; what a voxel becomes depends on what `halo` says."""
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
            mask = z_median(mask, self.z_median)
            yield "z_median", mask
        if self.opening is not None:
            mask = opening(mask, self.opening, spacing)
            yield "opening", mask
        if self.fill_slices:
            mask = fill_slices(mask)
            yield "fill_slices", mask

    @property
    def by_slice(self) -> bool:
        """Whether a step needs whole slices."""
        return self.min_mean is not None or self.watershed is not None or self.fill_slices

    def halo(self, spacing: Sequence[float]) -> tuple[int, int, int]:
        """Voxels (z, y, x) around a box that `local_stages` depend on; along y and x, unless `by_slice`.

        Args:
            spacing: (z, y, x) voxel size in nm.
        """
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
        """The voxel size, if a step needs one.

        Raises:
            UserError: A step needs it, and there is none.
        """
        in_nm = [n for n in ("smooth", "smoothness", "opening", "min_volume") if getattr(self, n) is not None]
        if in_nm and voxel_size is None:
            what = f"postprocess.{in_nm[0]} is in nm, and the volume has no voxel size"
            raise UserError(what, None, "give voxel_size=[z,y,x], or leave the step out")
        return voxel_size or (1.0, 1.0, 1.0)

    def check_memory(self, voxels: int, engine: Engine | None = None) -> None:
        """Refuse to work on more voxels at once than there is memory for, or than an engine may use.

        Raises:
            UserError: There is too little.
        """
        if voxels * BYTES > min(memory_available(), engine.item_bytes if engine else math.inf):
            what = f"post-processing holds {voxels} voxels at once: too little memory"
            raise UserError(
                what, f"{voxels * BYTES / 1e9:.1f} GB", "give more memory=, postprocess=none, or fewer steps"
            )


CLEAN = Postprocess(smooth=20.0, fill_holes=True, min_volume=1.0e6)
"""What ``postprocess=clean`` does; `conf/postprocess/clean.yaml` holds the same."""
