"""Can the tiles be seen in the result? The jump of a map across the borders of its tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt


def seam_ratio(map_zyx: npt.NDArray[np.floating], borders: Mapping[int, Sequence[int]]) -> float:
    """Mean jump between neighbours across tile borders over the mean jump between other neighbours.

    1 means that tiles cannot be told from the rest of the map; a map made of tiles that do not fit is above it.

    Args:
        map_zyx: Log-odds or probabilities.
        borders: For each axis that is tiled, the positions at which a tile starts or ends (0 and the length of the
            axis do not count).

    Returns:
        The ratio, pooled over the axes; NaN where there is no border, or nothing jumps elsewhere.

    >>> steps = np.repeat([0.0, 1.0], 4)[None, None] + 0.1 * np.arange(8)
    >>> round(seam_ratio(steps, {2: [4]}), 3)
    11.0
    """
    across, elsewhere = [0.0, 0], [0.0, 0]
    for axis, positions in borders.items():
        jump = np.abs(np.diff(map_zyx.astype(np.float64), axis=axis))
        at_border = np.zeros(jump.shape[axis], bool)
        at_border[[p - 1 for p in positions if 0 < p < map_zyx.shape[axis]]] = True
        for total, mask in ((across, at_border), (elsewhere, ~at_border)):
            part = np.compress(mask, jump, axis=axis)
            total[0] += float(part.sum())
            total[1] += part.size
    if not across[1] or not elsewhere[0]:
        return float("nan")
    return (across[0] / across[1]) / (elsewhere[0] / elsewhere[1])
