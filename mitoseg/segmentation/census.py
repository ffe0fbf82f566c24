"""Which instances a volume holds, how large each is and where it lies: one pass, block by block.

count_block      block -> table      pure, so that blocks can be counted anywhere and in any order
merge_counts     tables -> table     the parts of an instance that lie in several blocks become one row
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import cc3d
import numpy as np
import pandas as pd

from mitoseg.engines import Engine, LocalEngine, one_at_a_time
from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.volumes import Array, Volume

BLOCK = (32, 512, 512)
"""Voxels that are read at once, unless memory is short."""
VOXEL_BYTES = 32
"""Of each of them, at most."""
STARTS = ["box_z0", "box_y0", "box_x0"]
STOPS = ["box_z1", "box_y1", "box_x1"]
COLUMNS = ["instance", "voxels", *STARTS, *STOPS]


def count_block(labels_zyx: Array, start: Sequence[int] = (0, 0, 0)) -> pd.DataFrame:
    """The instances of one block.

    Args:
        labels_zyx: Whole numbers, 0 for background; any type, any ids.
        start: Where the block lies in the volume (z, y, x).

    Returns:
        One row an instance, with `COLUMNS`: id, voxels, and the half-open box in the volume's voxels.

    Raises:
        UserError: A label is negative.
    """
    flat = labels_zyx.ravel()
    inside = flat != 0
    codes, ids = pd.factorize(flat[inside])
    if len(ids) and ids.min() < 0:
        raise UserError(
            "an instance has a negative number", int(ids.min()), "number instances from 1, background is 0"
        )
    dense = np.zeros(flat.size, np.uint32)
    dense[inside] = codes + 1
    found = cc3d.statistics(dense.reshape(labels_zyx.shape), no_slice_conversion=True)
    boxes = np.asarray(found["bounding_boxes"], np.int64).reshape(-1, 3, 2)[1:]
    offset = np.asarray(start, np.int64)
    table = pd.DataFrame({"instance": ids.astype(np.uint64), "voxels": found["voxel_counts"][1:].astype(np.int64)})
    table[STARTS] = boxes[:, :, 0] + offset
    table[STOPS] = boxes[:, :, 1] + 1 + offset
    return table


def merge_counts(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """One row for each instance of several tables, in order of the ids: voxels are summed, boxes joined."""
    given = [table for table in tables if len(table)]
    if not given:
        return count_block(np.zeros((1, 1, 1), np.uint8))
    joined = pd.concat(given, ignore_index=True).groupby("instance", sort=True)
    how = {"voxels": "sum"} | dict.fromkeys(STARTS, "min") | dict.fromkeys(STOPS, "max")
    return joined.agg(how).reset_index()[COLUMNS]


def count_box(labels: Volume, box: Box) -> pd.DataFrame:
    """`count_block` of a part of a volume."""
    labels_zyx = labels.read(box)
    with one_at_a_time():
        return count_block(labels_zyx, box.start)


def take_census(
    labels: Volume,
    *,
    block: tuple[int, int, int] = BLOCK,
    on_block: Callable[[Box], None] | None = None,
    engine: Engine | None = None,
) -> pd.DataFrame:
    """The instances of a volume; see `count_block`.

    Args:
        labels: Instance numbers.
        block: Voxels that are read at once (z, y, x); it does not change the result.
        on_block: Called with each block that is done.
        engine: Started; others than this process read the labels for themselves. None: this process.

    Raises:
        UserError: The labels are no whole numbers, or negative.
    """
    if labels.dtype.kind not in "uib":
        raise UserError("instances are whole numbers", str(labels.dtype), "give instances, or say kind=probability")
    total, waiting = merge_counts([]), list[pd.DataFrame]()

    def take(box: Box, table: pd.DataFrame) -> None:
        nonlocal total
        waiting.append(table)
        if sum(map(len, waiting)) > len(total):  # so that the total is not sorted anew for every block
            total = merge_counts([total, *waiting])
            waiting.clear()
        if on_block is not None:
            on_block(box)

    engine = engine or LocalEngine()
    engine.map(partial(count_box, labels), tiles(labels.box, engine.fit(block, VOXEL_BYTES)), take)
    return merge_counts([total, *waiting])
