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

LIMIT = 20.0  # log-odds are clamped to [-LIMIT, LIMIT] (probabilities of 2e-9 and 1 - 2e-9)
BINS_PER_UNIT = 100
"""The inverse of the bin width of 0.01, by which a threshold's probability is known to 0.0025 or better."""
BINS = int(2 * LIMIT) * BINS_PER_UNIT

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EDGES: Floats = (np.arange(BINS + 1) - BINS // 2) / BINS_PER_UNIT
CENTRES: Floats = (np.arange(BINS) - BINS // 2 + 0.5) / BINS_PER_UNIT  # the log-odds that stand for each bin


def nan_error() -> UserError:
    """The error of log-odds that are not numbers."""
    return UserError(
        "the network's output is NaN", remedy="training diverged; lower the learning rate, or train in fp32"
    )


def logit_histogram(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.generic]) -> Ints:
    """Count log-odds of any shape by class and bin, (2, BINS): row 0 the background's voxels, row 1 the foreground's.

    Truth is 0 background, 1 foreground, anything else ignored (255 by convention).
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
    """Counts at every threshold, ascending; each array has ``BINS + 1`` entries.

    Foreground is ``logit >= threshold_logit``: the first calls everything foreground; the last is infinite and calls
    nothing so.
    """

    threshold_logit: Floats
    tp: Ints
    fp: Ints
    fn: Ints
    tn: Ints

    def at(self, threshold_logit: float) -> Counts:
        """The counts at the edge nearest to a threshold."""
        clamped = min(max(threshold_logit, -LIMIT), LIMIT)
        index = BINS if threshold_logit == math.inf else round((clamped + LIMIT) * BINS_PER_UNIT)
        return Counts(int(self.tp[index]), int(self.fp[index]), int(self.fn[index]), int(self.tn[index]))


def curve(hist: npt.NDArray[np.integer]) -> Curve:
    """Cumulate a `logit_histogram` into counts by threshold."""
    if hist.shape != (2, BINS):
        raise ValueError(f"a log-odds histogram has shape {(2, BINS)}, not {hist.shape}")
    above: Ints = np.zeros((2, BINS + 1), np.int64)
    above[:, :-1] = np.cumsum(hist[:, ::-1].astype(np.int64), axis=1)[:, ::-1]
    fp, tp = above
    return Curve(np.append(EDGES[:-1], math.inf), tp, fp, tp[0] - tp, fp[0] - fp)


def _ratio(numerator: Ints, denominator: Ints, zero_division: float) -> Floats:
    out = np.full(numerator.shape, zero_division, np.float64)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def best_threshold(*curves: Curve) -> tuple[float, float]:
    """The log-odds threshold that maximises the foreground's JAC, and that index; (0, NaN) without foreground.

    Of several curves it is the mean JAC of those that have foreground.

    Where many thresholds are equally good (separable classes), the middle of the longest run of them is taken, the one
    that a small drift of the scores harms least. For a calibrated map it lies near J / (1 + J) in probability, below
    0.5 (Lipton et al., 2014, for the F score). To be chosen on validation voxels, never on those of the test.
    """
    found = [_ratio(curve.tp, curve.tp + curve.fp + curve.fn, 0.0) for curve in curves if curve.tp[0]]
    if not found:
        return 0.0, math.nan
    jaccard = np.mean(found, axis=0)
    (at,) = np.nonzero(jaccard == jaccard.max())
    longest = max(np.split(at, np.flatnonzero(np.diff(at) > 1) + 1), key=len)
    index = int(longest[(len(longest) - 1) // 2])
    return float(curves[0].threshold_logit[index]), float(jaccard[index])


def precision_recall(curve: Curve) -> tuple[Floats, Floats]:
    """Precision and recall at every threshold, ascending; 1 where nothing is predicted, and where there is nothing."""
    precision = _ratio(curve.tp, curve.tp + curve.fp, 1.0)
    return precision, _ratio(curve.tp, curve.tp + curve.fn, 1.0)


def average_precision(curve: Curve) -> float:
    """``AP = sum_k (R_k - R_{k+1}) P_k``, the area under precision over recall; NaN without foreground.

    Without interpolation, as scikit-learn's `average_precision_score`.
    """
    if curve.tp[0] == 0:
        return math.nan
    precision, recall = precision_recall(curve)
    return float(np.sum((recall[:-1] - recall[1:]) * precision[:-1]))
