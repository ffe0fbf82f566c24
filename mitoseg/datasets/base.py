"""What a data set hands to training: labelled regions, split into train, validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, Volume, VoxelSize

IGNORE = 255
"""Label of voxels that enter neither loss, balance nor score (after mapping: 0 bg, 1 fg, 255 ignored)."""


@dataclass(frozen=True)
class Region:
    """A labelled box of a volume.

    The image outside the box may be read as context (it is real tissue), its labels may not.

    Attributes:
        image: The image volume.
        label: The label volume, already mapped: uint8 0 background, 1 foreground, `IGNORE`.
        box: The part that belongs to this split.
        name: For messages.
    """

    image: Volume
    label: Volume
    box: Box
    name: str = ""

    def read_image(self) -> Array:
        """``image_zyx`` of the box, in the stored dtype."""
        return self.image.read(self.box)

    def read_label(self) -> npt.NDArray[np.uint8]:
        """``label_zyx`` of the box: 0, 1 or `IGNORE`."""
        return self.label.read(self.box)


@dataclass(frozen=True)
class Splits:
    """The regions of each split, and what is known of them.

    Attributes:
        voxel_size: (z, y, x) in nm, or None when nobody said.
        provenance: Plain data: name, licence, citation, files with size and sha256, warnings, label rules.
    """

    train: tuple[Region, ...]
    validation: tuple[Region, ...]
    test: tuple[Region, ...] = ()
    voxel_size: VoxelSize | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Recipe(Protocol):
    """A data set: facts, and how to get its splits."""

    def prepare(self) -> None:
        """Download or generate what is missing; called once, on one process."""

    def splits(self) -> Splits:
        """Open the regions; reads no image voxels."""
