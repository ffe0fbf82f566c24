"""Counts to scores: one truth for training and evaluation.

The torchmetrics classes lie in `mitoseg.metrics.torch_metrics`, so that scoring two volumes needs no torch.
"""

from mitoseg.metrics.calibration import (
    Calibration,
    Reliability,
    brier_score,
    choose_decision,
    fit_calibration,
    negative_log_likelihood,
    prior_shift,
    reliability_bins,
)
from mitoseg.metrics.counts import IGNORE, LEVEL, Counts, bootstrap_intervals, count, scores
from mitoseg.metrics.histogram import (
    BINS,
    EDGES,
    Curve,
    average_precision,
    best_threshold,
    curve,
    logit_histogram,
    precision_recall,
)

__all__ = [
    "BINS",
    "EDGES",
    "IGNORE",
    "LEVEL",
    "Calibration",
    "Counts",
    "Curve",
    "Reliability",
    "average_precision",
    "best_threshold",
    "bootstrap_intervals",
    "brier_score",
    "choose_decision",
    "count",
    "curve",
    "fit_calibration",
    "logit_histogram",
    "negative_log_likelihood",
    "precision_recall",
    "prior_shift",
    "reliability_bins",
    "scores",
]
