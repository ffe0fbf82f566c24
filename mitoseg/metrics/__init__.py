"""Counts to scores: one truth for training and evaluation.

The torchmetrics classes lie in `mitoseg.metrics.torch_metrics`, so that scoring two volumes needs no torch.
"""

from mitoseg.metrics.calibration import Calibration
from mitoseg.metrics.counts import IGNORE, Counts, count, scores

__all__ = ["IGNORE", "Calibration", "Counts", "count", "scores"]
