"""One row for a whole volume, from the table of its mitochondria."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DISTRIBUTIONS = ("volume_nm3", "length_nm", "diameter_mean_nm")


def summarise(
    table: pd.DataFrame, shape: Sequence[int], voxel_size: Sequence[float], padding: int = 0
) -> dict[str, float]:
    """Counts, densities and distributions of size.

    Args:
        table: What `mitoseg.segmentation.morphometry.measure_instances` gave.
        shape: Of the volume (z, y, x).
        voxel_size: (z, y, x) in nm.
        padding: Voxels of the volume that are no tissue, see `mitoseg.volumes.padding`.

    Returns:
        ``count``; ``count_whole``, of those that touch no face of the volume; ``tissue_um3``, the volume's without
        its padding; ``padding_fraction``, the share of all voxels that is left out so; ``density_per_um3``,
        ``count_whole`` plus half of the others over ``tissue_um3`` (an object at a face lies in two volumes that share
        that face); ``volume_fraction``, the share of the tissue's voxels, like the density NaN where there is no
        tissue; and for each of `DISTRIBUTIONS`, over whole ones alone, ``_mean``, ``_sd`` (of a sample) and ``_q05``
        to ``_q95``, NaN where there are too few.
    """
    voxels = math.prod(shape) - padding
    tissue = voxels * math.prod(voxel_size) / 1e9
    whole = table[~table["touches_border"].astype(bool)]
    result: dict[str, float] = {
        "count": len(table),
        "count_whole": len(whole),
        "tissue_um3": tissue,
        "padding_fraction": padding / math.prod(shape),
        "density_per_um3": (len(whole) + 0.5 * (len(table) - len(whole))) / tissue if voxels else math.nan,
        "volume_fraction": float(table["voxels"].sum()) / voxels if voxels else math.nan,
    }
    for name in DISTRIBUTIONS:
        values = whole[name].to_numpy(float)
        result[f"{name}_mean"] = float(values.mean()) if len(values) else math.nan
        result[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        for q in QUANTILES:
            result[f"{name}_q{100 * q:02.0f}"] = float(np.quantile(values, q)) if len(values) else math.nan
    return result
