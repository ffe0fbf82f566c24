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
"""Label of voxels that are excluded from loss, class balance and scores."""


@dataclass(frozen=True)
class Region:
    """A labelled box of a volume; the image around it may be read as context, the labels may not.

    Labels are mapped already: uint8 0 background, 1 mitochondrion, `IGNORE`. ``domain`` is the tissue and microscope,
    where a data set has several.
    """

    image: Volume
    label: Volume
    box: Box
    name: str = ""
    domain: str = ""

    def read_image(self) -> Array:
        """``image_zyx`` of the box, in the stored dtype."""
        return self.image.read(self.box)

    def read_label(self) -> npt.NDArray[np.uint8]:
        """``label_zyx`` of the box: 0, 1 or `IGNORE`."""
        return self.label.read(self.box)


@dataclass(frozen=True)
class Splits:
    """The regions of each split, the voxel size (z, y, x) in nm if known, and what a run records of the data.

    ``provenance`` is plain data: name, licence, citation, files with size and sha256, warnings, label rules.
    """

    train: tuple[Region, ...]
    validation: tuple[Region, ...]
    test: tuple[Region, ...] = ()
    voxel_size: VoxelSize | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Recipe(Protocol):
    """A data set: where it comes from and how it is split."""

    def prepare(self) -> None:
        """Download or generate what is missing; called once, on one process.

        Raises:
            UserError: It cannot be downloaded, generated or stored.
        """

    def splits(self) -> Splits:
        """Open the regions; reads no image voxels.

        Raises:
            UserError: Files are missing or do not fit together.
        """
