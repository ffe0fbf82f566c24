"""Counts to scores: one truth for training and evaluation.

The torchmetrics classes lie in `mitoseg.metrics.torch_metrics`, so that scoring two volumes needs no torch.
"""

from mitoseg.metrics.calibration import (
    Calibration,
    brier_score,
    choose_decision,
    evened,
    negative_log_likelihood,
    prior_shift,
    reliability_bins,
)
from mitoseg.metrics.counts import IGNORE, LEVEL, Counts, bootstrap_intervals, count, scores
from mitoseg.metrics.histogram import (
    BINS,
    Curve,
    average_precision,
    best_threshold,
    curve,
    logit_histogram,
    precision_recall,
)

__all__ = [
    "BINS",
    "IGNORE",
    "LEVEL",
    "Calibration",
    "Counts",
    "Curve",
    "average_precision",
    "best_threshold",
    "bootstrap_intervals",
    "brier_score",
    "choose_decision",
    "count",
    "curve",
    "evened",
    "logit_histogram",
    "negative_log_likelihood",
    "precision_recall",
    "prior_shift",
    "reliability_bins",
    "scores",
]
