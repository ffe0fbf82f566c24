"""Counts to scores: one truth for training and evaluation.

The torchmetrics classes lie in `mitoseg.metrics.torch_metrics`, so that scoring two volumes needs no torch.
"""

from mitoseg.metrics.calibration import Calibration, fit_calibration, negative_log_likelihood, prior_shift
from mitoseg.metrics.counts import IGNORE, Counts, count, scores
from mitoseg.metrics.decision import Decision, choose_decision
from mitoseg.metrics.histogram import (
    BINS,
    EDGES,
    Curve,
    average_precision,
    best_threshold,
    curve,
    jaccard_foreground,
    logit_histogram,
    precision_recall,
)
from mitoseg.metrics.intervals import bootstrap_intervals
from mitoseg.metrics.reliability import Reliability, brier_score, expected_calibration_error, reliability_bins

__all__ = [
    "BINS",
    "EDGES",
    "IGNORE",
    "Calibration",
    "Counts",
    "Curve",
    "Decision",
    "Reliability",
    "average_precision",
    "best_threshold",
    "bootstrap_intervals",
    "brier_score",
    "choose_decision",
    "count",
    "curve",
    "expected_calibration_error",
    "fit_calibration",
    "jaccard_foreground",
    "logit_histogram",
    "negative_log_likelihood",
    "precision_recall",
    "prior_shift",
    "reliability_bins",
    "scores",
]
