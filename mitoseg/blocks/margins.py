"""How much around a region is kept, so that any block of it can be cut and turned without looking for the border."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mitoseg.datasets.base import Region
from mitoseg.geometry import Box, anchor
from mitoseg.volumes import CHANNEL_OFFSETS

NEIGHBOURS = max(abs(offset) for offsets in CHANNEL_OFFSETS.values() for offset in offsets)
"""Slices before and after that channels are made of."""


def reach(window: int) -> int:
    """Pixels around the answered one that any rotation and flip of a window may read.

    >>> reach(32), reach(67)
    (25, 49)
    """
    return math.ceil(math.sqrt(2) * (anchor(window) + 0.5)) + 1


@dataclass(frozen=True)
class KeptRegion:
    """A region and the margin that is kept around it: tissue in z, y and x, then in y and x also its reflection."""

    region: Region
    margin: int

    @property
    def wanted(self) -> Box:
        """The box with its whole margin."""
        return self.region.box.grow((NEIGHBOURS, self.margin, self.margin))

    @property
    def tissue(self) -> Box:
        """What of it lies in the volume."""
        return self.wanted.clip(self.region.image.box)

    @property
    def reflected(self) -> list[tuple[int, int]]:
        """Pixels to reflect before and after, in y and x."""
        ends = zip(self.wanted.start, self.tissue.start, self.tissue.stop, self.wanted.stop, strict=True)
        return [(start - wanted, last - stop) for wanted, start, stop, last in ends][1:]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is kept."""
        return self.tissue.shape[0], self.wanted.shape[1], self.wanted.shape[2]

    def places(self, start: int) -> list[int]:
        """What finds a voxel, if this lies from ``start`` on: see `VolumeBank.places_r5`."""
        Z, Y, X = self.shape
        first = self.tissue.start[0] - self.region.box.start[0]
        return [start - first * Y * X + self.margin * (X + 1), Y * X, X, first, first + Z]
