"""What labelling can be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from mitoseg.errors import UserError
from mitoseg.segmentation.merging import Criterion


@dataclass(frozen=True)
class Labelling:
    """How a mask becomes instances. Lengths are in nm, volumes in nm3.

    Attributes:
        connectivity: Voxels are neighbours over faces (6), edges as well (18), or corners as well (26).
        split: Whether touching mitochondria are cut at their necks; see `mitoseg.segmentation.splitting`.
        smoothing: Standard deviation of a Gaussian filter of the distance to the border.
        neck: Two bodies stay one if the neck between them is at least this share of the thinner body, from 0 (nothing
            is cut) to 1 (every maximum of the distance is an object).
        depth: They stay one if the thinner body's radius is not larger than the neck's by this much.
        seed_distance: They stay one if their middles lie closer together.
        fragment: What is cut off and smaller is joined to its neighbour again.
        min_volume: Objects below it are left out; None keeps all.

    Raises:
        UserError: A value is out of range.
    """

    connectivity: int = 6
    split: bool = False
    smoothing: float = 20.0
    neck: float = 0.5
    depth: float = 0.0
    seed_distance: float = 0.0
    fragment: float = 4.0e6
    min_volume: float | None = None

    def __post_init__(self) -> None:
        if self.connectivity not in (6, 18, 26):
            raise UserError("labelling.connectivity is no neighbourhood", self.connectivity, "give 6, 18 or 26")
        if not isinstance(self.split, bool):
            raise UserError("labelling.split is neither true nor false", self.split, "give true or false")
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value is None and field.name == "min_volume":
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise UserError(f"labelling.{field.name} is not a number from 0 on", value, "give 0 or more")
        if self.neck > 1:
            raise UserError("labelling.neck is no share", self.neck, "give a number from 0 to 1")

    def spacing(self, voxel_size: Sequence[float] | None) -> Sequence[float]:
        """The voxel size (z, y, x) in nm, or ones where it is neither known nor needed.

        Raises:
            UserError: It is not known, and an option is in nm.
        """
        if voxel_size is None and (self.split or self.min_volume):
            what = "labelling.split and labelling.min_volume are in nm, and the volume has no voxel size"
            raise UserError(what, None, "give voxel_size=[z,y,x], or leave them out")
        return voxel_size or (1.0, 1.0, 1.0)

    @property
    def criterion(self) -> Criterion:
        """Which basins of the watershed are joined."""
        return Criterion(self.neck, self.depth, self.seed_distance, self.fragment)
