"""One component cut into its parts, which are kept in little memory until they are written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.control_groups import memory_available
from mitoseg.engines import one_at_a_time
from mitoseg.geometry import Box
from mitoseg.segmentation.block_labels import label_components
from mitoseg.segmentation.objects import Objects, measure_objects
from mitoseg.segmentation.options import Labelling
from mitoseg.segmentation.packing import Packed, pack, unpack
from mitoseg.segmentation.splitting import split_mask
from mitoseg.volumes.base import Array, Volume

BYTES = 40
"""Memory that a voxel of a bounding box takes while its component is cut."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Two or more parts of one component.

    Attributes:
        box: The component's bounding box.
        objects: The parts; row ``i`` belongs to value ``i + 1``.
        packed: ``part_zyx`` of the box, int32.
    """

    box: Box
    objects: Objects
    packed: Packed

    def unpack(self) -> npt.NDArray[np.int32]:
        """``part_zyx``: 0 outside the component."""
        return unpack(self.packed)


@dataclass(frozen=True)
class Splitter:
    """Cuts components at their necks, one at a time; picklable, for any process that can read the mask.

    Attributes:
        mask: The volume.
        labelling: How.
        voxel_size: (z, y, x) in nm.
    """

    mask: Volume
    labelling: Labelling
    voxel_size: Sequence[float]

    def choose(self, components: Objects) -> Iterator[tuple[int, Objects]]:
        """Rows and tables of those large enough for two parts that are no fragments, the largest box first."""
        volume = components.voxels * float(np.prod(self.voxel_size))
        rows = np.flatnonzero((volume >= 2 * self.labelling.fragment) & (components.voxels > 1))
        size = np.prod(components.stop[rows] - components.start[rows], axis=1)
        for row in rows[np.argsort(-size, kind="stable")]:
            yield int(row), components.take(np.array([row]))

    def __call__(self, item: tuple[int, Objects]) -> Parts | None:
        """Cut one component.

        Args:
            item: Its row, and a table of it alone, as `mitoseg.segmentation.joining.merge_blocks` gives it.

        Returns:
            The parts, or None where it stays whole: it has no neck, or (with a warning) does not fit into memory.
        """
        _, component = item
        box = Box(tuple(map(int, component.start[0])), tuple(map(int, component.stop[0])))
        if box.size * BYTES > memory_available():
            log.warning("the component in %s is too large for memory and is not cut", box)
            return None
        mask_zyx = self.mask.read(box)
        with one_at_a_time():
            return self._cut(mask_zyx, box, component)

    def _cut(self, mask_zyx: Array, box: Box, component: Objects) -> Parts | None:
        label_zyx, _ = label_components(mask_zyx, self.labelling.connectivity)
        first = np.unravel_index(int(component.first[0]), self.mask.shape)
        own = label_zyx[tuple(int(f) - a for f, a in zip(first, box.start, strict=True))]
        part_zyx = split_mask(
            label_zyx == own,
            self.voxel_size,
            self.labelling.criterion,
            smoothing=self.labelling.smoothing,
            connectivity=self.labelling.connectivity,
            closed=[(a > 0, b < n) for a, b, n in zip(box.start, box.stop, self.mask.shape, strict=True)],
        )
        count = int(part_zyx.max())
        if count < 2:
            return None
        objects = measure_objects(part_zyx, count, box.start, self.mask.shape)
        return Parts(box, objects, pack(part_zyx))
