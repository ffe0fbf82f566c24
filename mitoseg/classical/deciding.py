"""The threshold that a probability map is cut at, chosen where the truth is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.volumes.labels import IGNORED

BINS = 2000

Pair = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Trial:
    """What a setting gave on validation.

    Attributes:
        smoothness: Of the graph cut, 0 without one.
        threshold: Probability at and above which a voxel alone is foreground.
        jaccard: Of the foreground, TP / (TP + FP + FN), pooled over all voxels.
    """

    smoothness: float
    threshold: float
    jaccard: float


def best_threshold(pairs: Iterable[Pair]) -> Trial:
    """The threshold of the largest foreground Jaccard index, to 1 / `BINS`.

    Args:
        pairs: ``prob_zyx`` float32 and ``label_zyx`` of 0, 1 and 255 (ignored); the voxels of all count together.

    Raises:
        UserError: No voxel is foreground.

    >>> prob_zyx, label_zyx = np.array([[[0.1, 0.3, 0.6]]], np.float32), np.array([[[0, 1, 1]]], np.uint8)
    >>> best_threshold([(prob_zyx, label_zyx)]).jaccard
    1.0
    """
    counts = np.zeros((2, BINS))
    for prob_zyx, label_zyx in pairs:
        bins = np.minimum(prob_zyx * np.float32(BINS), BINS - 1).astype(np.int32)
        for value in (0, 1):
            counts[value] += np.bincount(bins[label_zyx == value], minlength=BINS)
    # the voxels of bin k and above are foreground
    false, true = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    if true[0] == 0:
        raise UserError("the validation labels hold no mitochondria", None, "give slabs that hold some")
    jaccard = true / (true[0] + false)
    best = max(int(jaccard.argmax()), 1)
    return Trial(0.0, best / BINS, float(jaccard[best]))


def jaccard(pairs: Iterable[tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]]) -> float:
    """Foreground Jaccard index of masks, pooled over all voxels whose label is not 255."""
    both = either = 0
    for mask_zyx, label_zyx in pairs:
        truth, found = label_zyx == 1, mask_zyx & (label_zyx != IGNORED)
        both += int((truth & found).sum())
        either += int((truth | found).sum())
    return both / either if either else 0.0
