r"""Do probabilities mean what they say? Reliability and the Brier score, from a log-odds histogram.

A map is calibrated if, of the voxels to which it gives the probability p, the share p is foreground. Voxels are put
into bins of probability, and the mean probability of each bin (its confidence) stands against its share of foreground:

    bins of equal width    0 . . . . . . . . . 1     as most papers have it; nearly all EM voxels lie in the first
    adaptive bins          0.......  .  .    . 1     as many voxels in each, so none rests on a few
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from mitoseg.metrics.calibration import Calibration
from mitoseg.metrics.histogram import CENTRES, Floats, Ints

ECE_BINS = 15
"""Of Guo et al. (ICML 2017)."""
AS_STORED = Calibration()
"""The identity: log-odds are taken as they are."""


@dataclass(frozen=True)
class Reliability:
    """Bins of probability that hold voxels, ascending; each array has one entry a bin.

    Attributes:
        voxels: How many lie in it.
        confidence: Their mean probability.
        share: The share of them that is foreground.
    """

    voxels: Ints
    confidence: Floats
    share: Floats

    @property
    def error(self) -> float:
        """``sum_b n_b / n |share_b - confidence_b|``; NaN without voxels."""
        total = int(self.voxels.sum())
        return float(self.voxels @ np.abs(self.share - self.confidence) / total) if total else math.nan


def reliability_bins(
    hist: npt.NDArray[np.integer],
    calibration: Calibration = AS_STORED,
    *,
    bins: int = ECE_BINS,
    adaptive: bool = False,
) -> Reliability:
    """Mean probability and share of foreground, by bins of probability.

    Args:
        hist: `logit_histogram` of the voxels, as the network gave them.
        calibration: Applied before.
        bins: Number of bins of probability.
        adaptive: Bins of equally many voxels instead of equal width, as far as equal log-odds, which are not torn
            apart, allow.
    """
    probability, n = expit(calibration.apply(CENTRES)), hist.sum(axis=0)
    if adaptive:
        middle = np.cumsum(n) - n / 2
        at = (middle / max(1, n.sum()) * bins).astype(np.int64)
    else:
        at = (probability * bins).astype(np.int64)
    at = np.minimum(at, bins - 1)
    voxels = np.bincount(at, weights=n, minlength=bins).astype(np.int64)
    confidence = np.bincount(at, weights=n * probability, minlength=bins)
    foreground = np.bincount(at, weights=hist[1], minlength=bins)
    used = voxels > 0
    return Reliability(voxels[used], confidence[used] / voxels[used], foreground[used] / voxels[used])


def expected_calibration_error(
    hist: npt.NDArray[np.integer],
    calibration: Calibration = AS_STORED,
    *,
    bins: int = ECE_BINS,
    adaptive: bool = False,
) -> float:
    """``ECE = sum_b n_b / n |share of foreground in b - mean probability in b|`` over bins of probability.

    Source: Naeini et al., AAAI 2015; as torchmetrics' `BinaryCalibrationError` with the l1 norm. With bins of equally
    many voxels it is the adaptive calibration error of Nixon et al., CVPR Workshops 2019.

    Args:
        hist: `logit_histogram` of the voxels, as the network gave them.
        calibration: Applied before.
        bins: Number of bins of probability.
        adaptive: See `reliability_bins`.

    Returns:
        In [0, 1]; NaN without voxels.
    """
    return reliability_bins(hist, calibration, bins=bins, adaptive=adaptive).error


def brier_score(hist: npt.NDArray[np.integer], calibration: Calibration = AS_STORED) -> float:
    """Mean ``(p - truth)^2``, the squared error of the probabilities (Brier, Monthly Weather Review 78, 1950).

    Args:
        hist: `logit_histogram` of the voxels, as the network gave them.
        calibration: Applied before.

    Returns:
        In [0, 1]; NaN without voxels.
    """
    total = hist.sum()
    if not total:
        return math.nan
    p = expit(calibration.apply(CENTRES))
    return float((hist[0] @ p**2 + hist[1] @ (1 - p) ** 2) / total)
