"""One component cut into its parts, which are kept in little memory until they are written."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import psutil

from mitoseg.geometry import Box
from mitoseg.segmentation.block_labels import label_components
from mitoseg.segmentation.objects import Objects, measure_objects
from mitoseg.segmentation.options import Labelling
from mitoseg.segmentation.splitting import split_mask
from mitoseg.volumes.base import Volume

BYTES = 40
"""Memory that a voxel of a bounding box takes while its component is cut."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Two or more parts of one component.

    Attributes:
        box: The component's bounding box.
        objects: The parts; row ``i`` belongs to value ``i + 1``.
        packed: ``part_zyx`` of the box, int32, compressed.
    """

    box: Box
    objects: Objects
    packed: bytes

    def unpack(self) -> npt.NDArray[np.int32]:
        """``part_zyx``: 0 outside the component."""
        return np.frombuffer(zlib.decompress(self.packed), np.int32).reshape(self.box.shape)


def split_component(
    mask: Volume, component: Objects, labelling: Labelling, voxel_size: Sequence[float]
) -> Parts | None:
    """Cut one component at its necks.

    Args:
        mask: The volume.
        component: A table of one row, as `mitoseg.segmentation.block_labels.merge_blocks` gives it.
        labelling: How.
        voxel_size: (z, y, x) in nm.

    Returns:
        The parts, or None where the component stays whole: it is too small to give two parts that are no fragments,
        has no neck, or (with a warning) does not fit into memory.
    """
    if component.voxels[0] * np.prod(voxel_size) < 2 * labelling.fragment or component.voxels[0] < 2:
        return None
    box = Box(tuple(map(int, component.start[0])), tuple(map(int, component.stop[0])))
    if box.size * BYTES > psutil.virtual_memory().available:
        log.warning("the component in %s is too large for memory and is not cut", box)
        return None
    label_zyx, _ = label_components(mask.read(box), labelling.connectivity)
    first = np.unravel_index(int(component.first[0]), mask.shape)
    own = label_zyx[tuple(int(f) - a for f, a in zip(first, box.start, strict=True))]
    part_zyx = split_mask(
        label_zyx == own,
        voxel_size,
        labelling.criterion,
        smoothing=labelling.smoothing,
        connectivity=labelling.connectivity,
        closed=[(a > 0, b < n) for a, b, n in zip(box.start, box.stop, mask.shape, strict=True)],
    )
    count = int(part_zyx.max())
    if count < 2:
        return None
    objects = measure_objects(part_zyx, count, box.start, mask.shape)
    return Parts(box, objects, zlib.compress(np.ascontiguousarray(part_zyx).tobytes(), 1))
