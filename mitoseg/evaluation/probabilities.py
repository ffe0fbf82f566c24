"""Scores of stored probabilities that need no threshold: ranking, calibration, and what the best threshold would give.

All come from one log-odds histogram, so a map of any size costs one pass. Log-odds are known to 0.005, and those
beyond ±20 count as ±20 (`mitoseg.metrics.histogram`).
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from mitoseg.metrics import (
    Curve,
    Reliability,
    average_precision,
    best_threshold,
    brier_score,
    curve,
    negative_log_likelihood,
    precision_recall,
    reliability_bins,
)
from mitoseg.metrics.histogram import Ints
from mitoseg.metrics.reliability import AS_STORED

POINTS = 100
"""Of the stored precision-recall curve: one for each percent of recall."""


def probability_scores(hist: Ints) -> dict[str, object]:
    """Scores of the probabilities as they are stored.

    Args:
        hist: `mitoseg.metrics.logit_histogram` of everything that is scored.

    Returns:
        ``average_precision`` (the area under precision over recall); ``expected_calibration_error`` and
        ``adaptive_calibration_error`` (15 bins of equal width, and of equally many voxels);
        ``negative_log_likelihood`` (nats a voxel); ``brier_score``; ``jaccard_foreground_oracle``, the foreground's
        Jaccard index at ``threshold_oracle``, the best threshold for the very voxels that are scored: an upper bound,
        chosen on the scored volume, never a result. Then the curves: ``precision_recall`` with ``threshold``,
        ``precision``, ``recall``, and ``reliability`` and ``reliability_adaptive`` with ``voxels``, ``confidence``,
        ``share`` by bin.
        NaN, or an empty curve, where a class is missing that is needed.
    """
    points = curve(hist)
    threshold, oracle = best_threshold(points)
    by_width, by_mass = reliability_bins(hist), reliability_bins(hist, adaptive=True)
    return {
        "average_precision": average_precision(points),
        "expected_calibration_error": by_width.error,
        "adaptive_calibration_error": by_mass.error,
        "negative_log_likelihood": negative_log_likelihood(hist, AS_STORED),
        "brier_score": brier_score(hist),
        "jaccard_foreground_oracle": oracle,
        "threshold_oracle": float(expit(threshold)),
        "precision_recall": _thinned(points),
        "reliability": _listed(by_width),
        "reliability_adaptive": _listed(by_mass),
    }


def _thinned(points: Curve) -> dict[str, list[float]]:
    """The highest threshold that reaches each percent of recall, ascending."""
    if not points.tp[0]:
        return {"threshold": [], "precision": [], "recall": []}
    precision, recall = precision_recall(points)
    wanted = np.arange(1, POINTS + 1) / POINTS
    at = np.unique(len(recall) - 1 - np.searchsorted(recall[::-1], wanted - 1e-12))
    return {
        "threshold": expit(points.threshold_logit[at]).tolist(),
        "precision": precision[at].tolist(),
        "recall": recall[at].tolist(),
    }


def _listed(bins: Reliability) -> dict[str, list[float]]:
    return {name: getattr(bins, name).tolist() for name in ("voxels", "confidence", "share")}
