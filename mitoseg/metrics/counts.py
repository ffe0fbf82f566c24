r"""Voxel counts and the scores made of them: the one truth for training and evaluation.

Counts are summed over blocks, slabs and processes, and scores are computed once from the sum (pooled over voxels). The
mean of per-slice or per-batch scores is another number, and is nowhere computed.

                     truth 1   truth 0   truth 255
    prediction 1       tp        fp      not counted
    prediction 0       fn        tn      not counted
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORE = 255  # truth of voxels that count nowhere

LEVEL = 0.95  # share of the draws of a bootstrap that an interval holds

INTERVALS = ("jaccard_foreground", "jaccard_background", "jaccard_mean", "dice", "precision", "recall")
"""The scores that have an interval."""


@dataclass(frozen=True)
class Counts:
    """How many voxels are true and false positives and negatives; foreground is the positive class.

    >>> Counts(tp=3, fp=1) + Counts(fn=2, tn=4)
    Counts(tp=3, fp=1, fn=2, tn=4)
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.tp - other.tp, self.fp - other.fp, self.fn - other.fn, self.tn - other.tn)

    @property
    def foreground(self) -> int:
        """Voxels whose truth is foreground."""
        return self.tp + self.fn

    @property
    def background(self) -> int:
        """Voxels whose truth is background."""
        return self.fp + self.tn

    @property
    def voxels(self) -> int:
        """All counted voxels."""
        return self.foreground + self.background


def count(prediction: npt.NDArray[np.bool_], truth: npt.NDArray[np.generic]) -> Counts:
    """Count agreement voxel by voxel; truth is 0 background, 1 foreground, 255 ignored, any other a `ValueError`.

    >>> count(np.array([True, True, False]), np.array([1, 0, 255]))
    Counts(tp=1, fp=1, fn=0, tn=0)
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth differ in shape: {prediction.shape} and {truth.shape}")
    if prediction.dtype != np.bool_:
        raise ValueError(f"the prediction must be boolean, not {prediction.dtype}; apply the threshold first")
    foreground, background = truth == 1, truth == 0
    n_foreground, n_background = int(np.count_nonzero(foreground)), int(np.count_nonzero(background))
    n_ignored = 0 if truth.dtype == np.bool_ else int(np.count_nonzero(truth == IGNORE))
    if n_foreground + n_background + n_ignored != truth.size:
        raise ValueError(f"truth must hold 0, 1 and {IGNORE} only; map the labels first")
    tp = int(np.count_nonzero(prediction & foreground))
    fp = int(np.count_nonzero(prediction & background))
    return Counts(tp, fp, n_foreground - tp, n_background - fp)


def ratio(numerator: float, denominator: float) -> float:
    """A score; NaN where it has no denominator."""
    return numerator / denominator if denominator else math.nan


def scores(counts: Counts) -> dict[str, float]:
    """The scores of pooled counts, in [0, 1], and ``voxels``; NaN where a score has no denominator.

    The Jaccard index is ``TP / (TP + FP + FN)`` (Jaccard, 1912), for the foreground, for the background (``TN / (TN +
    FP + FN)``) and as the mean of both; these differ by up to 40 points on one map, so all three are given. Dice is
    ``2 TP / (2 TP + FP + FN)`` (Dice, 1945), and precision and recall are those of the foreground.

    >>> scores(Counts(tp=2, fp=1, fn=1, tn=6))["jaccard_foreground"]
    0.5
    """
    tp, fp, fn, tn = counts.tp, counts.fp, counts.fn, counts.tn
    foreground, background = ratio(tp, tp + fp + fn), ratio(tn, tn + fp + fn)
    return {
        "jaccard_foreground": foreground,
        "jaccard_background": background,
        "jaccard_mean": (foreground + background) / 2,
        "dice": ratio(2 * tp, 2 * tp + fp + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "accuracy": ratio(tp + tn, counts.voxels),
        "voxels": counts.voxels,
    }


def bootstrap_intervals(
    parts: Sequence[Counts], *, resamples: int = 2000, seed: int = 1, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the pooled scores over parts of the tissue (Efron, Annals of Statistics 7(1), 1979).

    As many parts as there are are drawn with replacement, their counts are summed, and scores are computed from the
    sum; the interval holds the middle ``level`` of what ``resamples`` draws gave. Parts that lie side by side, such
    as z-slabs, are alike, so the interval is rather too narrow than too wide. A draw in which a score has no
    denominator does not count for it. NaN where no draw is left, and where there are fewer than two parts.

    >>> bootstrap_intervals([Counts(tp=1, fp=1), Counts(tp=3, fn=1)])["recall"]
    (0.75, 1.0)
    """
    if len(parts) < 2:
        return dict.fromkeys(INTERVALS, (math.nan, math.nan))
    counts = np.array([[part.tp, part.fp, part.fn, part.tn] for part in parts], np.int64)
    drawn = np.random.default_rng(seed).integers(0, len(counts), (resamples, len(counts)))
    found = [scores(Counts(*row)) for row in counts[drawn].sum(axis=1).tolist()]
    intervals = {}
    for name in INTERVALS:
        defined = [values[name] for values in found if not math.isnan(values[name])]
        ends = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) if defined else (math.nan, math.nan)
        intervals[name] = float(ends[0]), float(ends[1])
    return intervals
