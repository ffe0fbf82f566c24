r"""The volume-overlap (VOC) loss, and the labelling that violates a margin of that loss most.

With P the volume of the foreground in truth, FN what of it a labelling misses and FP what it adds,

    Delta(y) = 1 - TP / (TP + FN + FP) = (FN + FP) / (P + FP),

which is no sum over supervoxels: the loss of one depends on all others. Loss-augmented inference, the maximum of
Delta(y) + S(y) with S the score of the graph (minus its energy), is therefore no single cut. But for a given union
U = P + FP the loss is linear in TP, and its tangent in (FN, FP) at any labelling is

    Delta ~ const + FN / U + FP TP / U^2,

a sum of supervoxels' volumes with one weight for a miss and one for an addition. Under such a sum one minimum cut
finds the maximum exactly. At the truth (U = TP = P) both weights are 1 / P: volumes normalised by the foreground's,
the usual decomposable stand-in. From there and two other starts the tangent is moved to the labelling found until it
stays, each labelling is scored with the true loss, and the best one wins. High-order losses by linear pieces:
Ranjbar, Vahdat and Mori, CVPR 2012; Tarlow and Zemel, AISTATS 2012. What comes out is a lower bound of the maximum,
so that subgradients are approximate, which the learning allows for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.classical.potts import energy, minimum_cut

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

STARTS = ((1.0, 1.0), (2.0, 1.0), (1.0, 0.0))
"""U and TP of the tangents to start from, in units of P: the truth, twice its volume, and all of it missed."""
MOVES = 3
"""Tangents tried from each start, at most."""


@dataclass(frozen=True)
class VolumeLoss:
    """Delta for one truth.

    Attributes:
        truth: (N,) whether a supervoxel is foreground.
        volume: (N,) what it counts, 0 where nothing is labelled.
        floor: The least P: without it a single voxel would be a loss of 1 where the truth has no foreground.
    """

    truth: Bools
    volume: Floats
    floor: float = 1.0

    @property
    def foreground(self) -> float:
        """P."""
        return max(float(self.volume[self.truth].sum()), self.floor)

    def __call__(self, labels: Bools) -> float:
        """Delta of a labelling, 0 for the truth, up to 1.

        >>> loss = VolumeLoss(np.array([True, True, False]), np.array([2.0, 2.0, 4.0]))
        >>> loss(np.array([True, False, True]))
        0.75
        """
        missed, added = self._errors(labels)
        return (missed + added) / (self.foreground + added)

    def tangent(self, labels: Bools) -> tuple[float, float]:
        """What a missed and an added unit of volume cost next to a labelling."""
        missed, added = self._errors(labels)
        union = self.foreground + added
        return 1 / union, (self.foreground - missed) / union**2

    def costs(self, miss: float, addition: float) -> Floats:
        """The linear loss as costs of foreground, lower where it pays to be wrong: to subtract from an energy."""
        return self.volume * np.where(self.truth, miss, -addition)

    def _errors(self, labels: Bools) -> tuple[float, float]:
        missed = self.volume[self.truth & ~labels].sum()
        return float(missed), float(self.volume[labels & ~self.truth].sum())


def augmented_labelling(
    loss: VolumeLoss, cost: Floats, pairs: npt.NDArray[np.int64], weight: Floats
) -> tuple[Bools, float]:
    """The labelling with the largest Delta(y) - E(y) of those that the tangents lead to.

    Args:
        loss: Delta.
        cost: (N,) of E, see `mitoseg.classical.potts`.
        pairs: (E, 2).
        weight: (E,), none below zero.

    Returns:
        The labelling, and Delta(y) - E(y) for it; never less than the truth's own.
    """
    best, highest = loss.truth, -energy(loss.truth, cost, pairs, weight)
    tried = set()
    for union, hit in STARTS:
        miss, addition = 1 / (union * loss.foreground), hit / (union**2 * loss.foreground)
        for _ in range(MOVES):
            slope = (round(miss * loss.foreground, 3), round(addition * loss.foreground, 3))
            if slope in tried:
                break
            tried.add(slope)
            labels = minimum_cut(cost + loss.costs(miss, addition), pairs, weight)
            value = loss(labels) - energy(labels, cost, pairs, weight)
            if value > highest:
                best, highest = labels, value
            miss, addition = loss.tangent(labels)
    return best, highest
