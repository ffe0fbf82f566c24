"""Layers and tables as files: whole or not at all, and never over something else unless that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mitoseg.errors import UserError
from mitoseg.geometry import tiles
from mitoseg.tables import write_table
from mitoseg.volumes import Volume, create_volume
from mitoseg.volumes.opening import stored_in

LABELS = np.dtype(np.uint32)
BLOCK = (64, 512, 512)
FORMATS = "Volumes (*.tif *.tiff *.h5 *.hdf5 *.zarr)"
"""Of labels, as Qt's dialogs write them; MRC has no 32 bits for whole numbers."""
DIGITS = 9
"""Of floats in tables, as of `mitoseg measure`."""


def save_volume(path: str, volume: Volume, metadata: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write a volume; see `mitoseg.volumes.create_volume`.

    Args:
        path: The suffix chooses the format.
        volume: With its voxel size.
        metadata: What comes with it; instances and masks are written in their own types.
        overwrite: Whether an output that exists may be replaced.

    Raises:
        UserError: It cannot be written, or the labels do not fit their type.
    """
    kind = metadata.get("kind")
    types: dict[object, np.dtype[Any]] = {"instances": LABELS, "mask": np.dtype(np.uint8)}
    dtype, size = types.get(kind, volume.dtype), volume.voxel_size
    with create_volume(path, volume.shape, dtype, voxel_size=size, metadata=metadata, overwrite=overwrite) as writer:
        for box in tiles(volume.box, BLOCK):
            values_zyx = volume.read(box)
            if kind == "instances" and values_zyx.size and not 0 <= values_zyx.min() <= values_zyx.max() < 2**32:
                raise UserError("an instance number does not fit 32 bits", int(values_zyx.max()), "number them from 1")
            writer.write(box, values_zyx.astype(dtype, copy=False))


def save_table(path: str, table: pd.DataFrame, *, overwrite: bool = False) -> None:
    """Write a table as CSV.

    Raises:
        UserError: The name does not end with .csv, or the file cannot be written.
    """
    if Path(path).suffix.lower() != ".csv":
        raise UserError("cannot write a table of that kind", Path(path).name, "end its name with .csv")
    write_table(Path(path), table, overwrite=overwrite, digits=DIGITS)


def is_there(path: str) -> bool:
    """Whether saving under this name would replace something."""
    return stored_in(path).exists()
