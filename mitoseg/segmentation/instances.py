"""From a mask to numbered instances."""

from __future__ import annotations

import cc3d
import numpy as np
import numpy.typing as npt


def label_components(mask_zyx: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Number the connected components (26 neighbours) of a mask from 1 on; 0 is background."""
    labels_zyx = cc3d.connected_components(np.ascontiguousarray(mask_zyx), connectivity=26, out_dtype=np.uint32)
    return labels_zyx.astype(np.uint32, copy=False)
