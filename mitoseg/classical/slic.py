"""Supervoxels: SLIC on the grey values and on what a voxel classifier says of them.

SLIC (Achanta et al., IEEE TPAMI 34(11), 2012) is k-means on position and colour, each cluster within reach of its
place on a grid. On grey values alone its supervoxels cross membranes that are faint; with what the learned maps say as
a second colour they follow the boundaries that matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from skimage.segmentation import slic

ITERATIONS = 5


def supervoxels(
    colour_zyxc: npt.NDArray[np.float32],
    size: float,
    voxel_size: Sequence[float],
    *,
    compactness: float = 0.05,
    blur: float = 5.0,
) -> npt.NDArray[np.int32]:
    """Cut a block into connected supervoxels.

    Args:
        colour_zyxc: Channels of values 0 ... 1, weighted as they shall count.
        size: Edge in nm of a cube as large as a supervoxel is on average.
        voxel_size: (z, y, x) in nm.
        compactness: Weight of position against colour.
        blur: Standard deviation in nm of a Gaussian filter that comes first.

    Returns:
        (Z, Y, X) numbers from 0 without a gap.
    """
    smooth = gaussian_filter(colour_zyxc, [*(blur / v for v in voxel_size), 0], mode="nearest", truncate=2)
    shape = colour_zyxc.shape[:3]
    count = max(1, round(math.prod(shape) * math.prod(voxel_size) / size**3))
    if count == 1:
        return np.zeros(shape, np.int32)
    least = min(voxel_size)
    label = slic(
        smooth,
        n_segments=count,
        compactness=compactness,
        max_num_iter=ITERATIONS,
        sigma=0,
        spacing=[v / least for v in voxel_size],
        convert2lab=False,
        start_label=0,
        channel_axis=-1,
    )
    _, dense = np.unique(label, return_inverse=True)
    return dense.reshape(shape).astype(np.int32)
