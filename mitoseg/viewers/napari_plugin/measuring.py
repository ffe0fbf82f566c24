"""The table of the instances of a layer, and its rows after a correction."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from mitoseg.errors import UserError
from mitoseg.segmentation import Sources, measure_instances
from mitoseg.segmentation.census import STARTS, STOPS, count_block, merge_counts
from mitoseg.segmentation.morphometry import measure_group
from mitoseg.viewers.napari_plugin.jobs import Tell, tell_nobody
from mitoseg.volumes import Array, ArrayVolume, Volume, VoxelSize

COLUMNS = {
    "instance": ("number", 1.0),
    "volume_nm3": ("volume (µm³)", 1e-9),
    "surface_nm2": ("surface (µm²)", 1e-6),
    "length_nm": ("length (nm)", 1.0),
    "diameter_mean_nm": ("diameter (nm)", 1.0),
    "sphericity": ("sphericity", 1.0),
    "branches": ("branches", 1.0),
    "grey_mean": ("grey", 1.0),
    "probability_mean": ("probability", 1.0),
    "touches_border": ("at the border", 1.0),
}
"""What the panel shows, with its title and factor; the saved table has every column, in nm."""


def make_sources(
    labels_zyx: Array, voxel_size: VoxelSize | None, image: Volume | None = None, probability: Volume | None = None
) -> Sources:
    """What is measured; images of another shape are left out.

    Args:
        labels_zyx: Instance numbers.
        voxel_size: (z, y, x) in nm.
        image: Grey values.
        probability: Of mitochondrion; its metadata say the stored value of 1.

    Raises:
        UserError: There is no voxel size.
    """
    if voxel_size is None:
        raise UserError("measuring needs the voxel size", None, "fill in the field “Voxels (nm)”")
    fitting = [v if v is not None and v.shape == labels_zyx.shape else None for v in (image, probability)]
    scale = float(fitting[1].info.metadata.get("scale") or 1.0) if fitting[1] is not None else 1.0
    return Sources(ArrayVolume(labels_zyx), voxel_size, image=fitting[0], probability=fitting[1], scale=scale)


def measure(sources: Sources, tell: Tell = tell_nobody) -> pd.DataFrame:
    """All instances; see `mitoseg.segmentation.measure_instances`."""
    return measure_instances(sources, on_part=lambda share: tell(share, "measuring"))


def measure_again(table: pd.DataFrame, sources: Sources, changed: Collection[int]) -> pd.DataFrame:
    """The table after a correction: only the rows of what was changed are measured.

    Distances to neighbours are left out of those rows: they depend on others.

    Args:
        table: As it was before.
        sources: With the corrected labels.
        changed: Numbers of the instances that were there before or are now.
    """
    ids = np.array(sorted(changed))
    labels_zyx = sources.labels.read()
    found = []
    for z, labels_yx in enumerate(labels_zyx):  # slice by slice, so that no second volume is made
        mine_yx = np.isin(labels_yx, ids)
        if mine_yx.any():
            found.append(count_block(np.where(mine_yx, labels_yx, 0)[None], (z, 0, 0)))
    rows = pd.DataFrame(measure_group(sources, merge_counts(found))) if found else table.iloc[:0]
    kept = table[~table["instance"].isin(ids)]
    joined = pd.concat([part for part in (kept, rows.reindex(columns=table.columns)) if len(part)] or [kept])
    whole = dict.fromkeys(["voxels", "branches", *STARTS, *STOPS], np.int64)
    types = {"instance": np.uint64, "touches_border": bool, **whole}
    return joined.astype(types).sort_values("instance", ignore_index=True)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that the panel shows, in its units."""
    columns = {}
    for name, (title, factor) in COLUMNS.items():
        if name in table:
            columns[title] = table[name] if factor == 1 else table[name] * factor
    return pd.DataFrame(columns)
