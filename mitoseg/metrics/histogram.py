r"""Scores at every threshold from one small histogram of log-odds per class.

Log-odds (the logit of the foreground minus that of the background) keep their resolution where probabilities crowd
against 0 and 1. Bin ``i`` holds ``EDGES[i] <= logit < EDGES[i + 1]``; what lies beyond falls into the end bins:

    EDGES     -20    -19.99   -19.98            0               19.99     20
                |  bin 0 |  bin 1 |  ...  | bin 2000 |  ...  | bin 3999 |
    threshold k calls foreground everything from bin k on

Every threshold is an edge, so counts at a threshold are exact, and histograms of blocks and processes add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.metrics.counts import Counts

LIMIT = 20.0
"""Log-odds are clamped to [-LIMIT, LIMIT] (probabilities of 2e-9 and 1 - 2e-9)."""
BINS_PER_UNIT = 100
"""The inverse of the bin width of 0.01, by which a threshold's probability is known to 0.0025 or better."""
BINS = int(2 * LIMIT) * BINS_PER_UNIT
"""Number of bins."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EDGES: Floats = (np.arange(BINS + 1) - BINS // 2) / BINS_PER_UNIT
"""``BINS + 1`` edges."""
CENTRES: Floats = (np.arange(BINS) - BINS // 2 + 0.5) / BINS_PER_UNIT
"""The log-odds that stand for each bin."""


def nan_error() -> UserError:
    """The error of log-odds that are not numbers."""
    return UserError(
        "the network's output is NaN", remedy="training diverged; lower the learning rate, or train in fp32"
    )


def logit_histogram(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.generic]) -> Ints:
    """Count log-odds by class and bin.

    Args:
        logits: Log-odds of the foreground, any shape.
        truth: Same shape; 0 background, 1 foreground, anything else ignored (255 by convention).

    Returns:
        int64 of shape (2, BINS): row 0 the background's voxels, row 1 the foreground's.

    Raises:
        ValueError: The shapes differ.
        UserError: A logit is NaN.
    """
    if logits.shape != truth.shape:
        raise ValueError(f"logits and truth differ in shape: {logits.shape} and {truth.shape}")
    if np.isnan(logits).any():
        raise nan_error()
    keep = (truth == 0) | (truth == 1)
    # Single precision, as on the device, so that both histograms agree to the voxel.
    x = np.clip(logits[keep].astype(np.float32), -LIMIT, LIMIT)
    index = np.floor(x * np.float32(BINS_PER_UNIT) + np.float32(BINS // 2)).astype(np.int64)
    index = np.minimum(index, BINS - 1) + BINS * truth[keep].astype(np.int64)
    return np.bincount(index, minlength=2 * BINS).reshape(2, BINS).astype(np.int64)


@dataclass(frozen=True)
class Curve:
    """Counts at every threshold; each array has ``BINS + 1`` entries, thresholds ascending.

    Attributes:
        threshold_logit: Foreground is ``logit >= threshold``. The first calls everything foreground; the last is
            infinite and calls nothing so.
        tp: True positives at each threshold; so ``fp``, ``fn``, ``tn``.
    """

    threshold_logit: Floats
    tp: Ints
    fp: Ints
    fn: Ints
    tn: Ints

    def counts(self, index: int) -> Counts:
        """The counts at one of the thresholds."""
        return Counts(int(self.tp[index]), int(self.fp[index]), int(self.fn[index]), int(self.tn[index]))

    def at(self, threshold_logit: float) -> Counts:
        """The counts at the edge nearest to a threshold."""
        clamped = min(max(threshold_logit, -LIMIT), LIMIT)
        index = BINS if threshold_logit == math.inf else round((clamped + LIMIT) * BINS_PER_UNIT)
        return self.counts(index)


def curve(hist: npt.NDArray[np.integer]) -> Curve:
    """Cumulate a `logit_histogram` into counts by threshold."""
    if hist.shape != (2, BINS):
        raise ValueError(f"a log-odds histogram has shape {(2, BINS)}, not {hist.shape}")
    above: Ints = np.zeros((2, BINS + 1), np.int64)
    above[:, :-1] = np.cumsum(hist[:, ::-1].astype(np.int64), axis=1)[:, ::-1]
    fp, tp = above
    threshold_logit = EDGES.copy()
    threshold_logit[-1] = math.inf
    return Curve(threshold_logit, tp, fp, tp[0] - tp, fp[0] - fp)


def _ratio(numerator: Ints, denominator: Ints, zero_division: float) -> Floats:
    out = np.full(numerator.shape, zero_division, np.float64)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def jaccard_foreground(curve: Curve, *, zero_division: float = math.nan) -> Floats:
    """``TP / (TP + FP + FN)`` at every threshold."""
    return _ratio(curve.tp, curve.tp + curve.fp + curve.fn, zero_division)


def best_index(curve: Curve) -> int | None:
    """Where the foreground's Jaccard index is largest: the middle of the longest plateau of maxima (None: no fg)."""
    if curve.tp[0] == 0:
        return None
    jaccard = jaccard_foreground(curve, zero_division=0.0)
    (at,) = np.nonzero(jaccard == jaccard.max())
    runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[(len(longest) - 1) // 2])


def best_threshold(curve: Curve, *, zero_division: float = math.nan) -> tuple[float, float]:
    """The log-odds threshold that maximises the foreground's Jaccard index, and that index.

    Where many thresholds are equally good (separable classes), the middle of the longest run of them is taken, the one
    that a small drift of the scores harms least. For a calibrated map it lies near J / (1 + J) in probability, below
    0.5 (Lipton et al., 2014, for the F score).

    Args:
        curve: Of the voxels on which the threshold is chosen (validation, never test).
        zero_division: The index returned where there is no foreground; the threshold is then 0.
    """
    index = best_index(curve)
    if index is None:
        return 0.0, zero_division
    c = curve.counts(index)
    return float(curve.threshold_logit[index]), c.tp / (c.tp + c.fp + c.fn)


def precision_recall(curve: Curve, *, zero_division: float = 1.0) -> tuple[Floats, Floats]:
    """Precision and recall at every threshold, thresholds ascending.

    Args:
        curve: From `curve`.
        zero_division: Precision where nothing is predicted, and recall where there is nothing to find.
    """
    precision = _ratio(curve.tp, curve.tp + curve.fp, zero_division)
    return precision, _ratio(curve.tp, curve.tp + curve.fn, zero_division)


def average_precision(curve: Curve, *, zero_division: float = math.nan) -> float:
    """``AP = sum_k (R_k - R_{k+1}) P_k``, the area under precision over recall without interpolation.

    Source: scikit-learn's `average_precision_score`. ``zero_division`` is returned where there is no foreground.
    """
    if curve.tp[0] == 0:
        return zero_division
    precision, recall = precision_recall(curve)
    return float(np.sum((recall[:-1] - recall[1:]) * precision[:-1]))
