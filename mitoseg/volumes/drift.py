"""How far a volume's grey values are from those that a network was trained on.

The distance is the mean over quantiles of the difference, in training's standard deviations (the Wasserstein-1
distance of the two distributions). Measured against the EPFL CA1 training volume:

    a fifth of the training volume               0.03 to 0.12
    the test half                                0.10
    ventral nerve cord, another microscope       0.65
    the test half, inverted                      0.72
    the test half in 16 bits                     1113
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, Volume
from mitoseg.volumes.normalize import read_tissue

FAR = 0.35
"""The distance from which on grey values are another's."""
_PLACES, _SIDE, _DEPTH = 4, 96, 2
"""Boxes along each axis, and their sides in y and x, and in z."""


def sample_greys(volume: Volume) -> Array:
    """Grey values of small boxes spread evenly over a volume; padding, and what is one value alone, are left out.

    Raises:
        UserError: The file is damaged, or holds NaN or infinity.
    """
    sides = (_DEPTH, _SIDE, _SIDE)
    starts = [_starts(n, side) for n, side in zip(volume.shape, sides, strict=True)]
    found: list[Array] = []
    for start in itertools.product(*starts):
        box = Box(start, tuple(a + side for a, side in zip(start, sides, strict=True))).clip(volume.box)
        image_zyx = read_tissue(volume, box)
        if image_zyx.size and image_zyx.min() < image_zyx.max():
            found.append(image_zyx.ravel())
    return np.concatenate(found) if found else np.empty(0, volume.dtype)


def _starts(n: int, side: int) -> list[int]:
    """Where boxes begin along an axis: in the middles of equal parts."""
    return sorted({max(0, min(n - side, int((i + 0.5) * n / _PLACES) - side // 2)) for i in range(_PLACES)})


def grey_distance(greys: Array, quantiles: Sequence[float]) -> float:
    """See the module.

    Args:
        greys: Of the volume, any shape.
        quantiles: Of training, evenly spaced from the smallest value to the largest.
    """
    wanted: npt.NDArray[np.float64] = np.asarray(quantiles, float)
    own = np.quantile(greys.astype(np.float64), np.linspace(0, 1, len(wanted)))
    spread = float(wanted.std())
    distance = float(np.abs(own - wanted).mean())
    return distance / spread if spread > 0 else float(distance > 0)
