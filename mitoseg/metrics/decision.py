"""From the log-odds of validation voxels to what a checkpoint carries: calibration and threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from mitoseg.metrics.calibration import Calibration, fit_calibration
from mitoseg.metrics.counts import Counts
from mitoseg.metrics.histogram import Curve, best_threshold, curve


@dataclass(frozen=True)
class Decision:
    """How log-odds become foreground.

    Attributes:
        calibration: From raw log-odds to calibrated ones.
        threshold: Calibrated probability that maximises the foreground JAC.
        raw_threshold: The same as raw log-odds.
        curve: Counts at every threshold.
    """

    calibration: Calibration
    threshold: float
    raw_threshold: float
    curve: Curve

    @property
    def counts(self) -> Counts:
        """Counts at the threshold."""
        return self.curve.at(self.raw_threshold)


def choose_decision(hist: npt.NDArray[np.integer], prior_shift: float) -> Decision:
    """Fit the calibration and choose the threshold with the best foreground JAC.

    Args:
        hist: `logit_histogram` of validation voxels, raw log-odds.
        prior_shift: From `prior_shift`.
    """
    counted = curve(hist)
    calibration = fit_calibration(hist, prior_shift)
    raw, _ = best_threshold(counted)
    return Decision(calibration, float(expit(calibration.apply(raw))), raw, counted)
