"""The scores as torchmetrics, for training.

Whole slices are counted into one log-odds histogram, summed exactly over devices; scores, threshold and calibration
come from it by the functions of `mitoseg.metrics.histogram` and `mitoseg.metrics.calibration`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryJaccardIndex

from mitoseg.metrics.counts import IGNORE
from mitoseg.metrics.histogram import BINS, BINS_PER_UNIT, LIMIT, nan_error


class LogitHistogram(Metric):
    """Collects `mitoseg.metrics.histogram.logit_histogram` over batches and devices; computes to it, int64 (2, BINS).

    ``update`` takes log-odds of the foreground, of any shape and float type, and a target of the same shape with 0
    background, 1 foreground, 255 ignored.
    """

    is_differentiable = False
    full_state_update = False
    histogram: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("histogram", torch.zeros((2, BINS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch.

        Raises:
            ValueError: The shapes differ.
            UserError: A logit is NaN.
        """
        if logits.shape != target.shape:
            raise ValueError(f"logits and target differ in shape: {tuple(logits.shape)} and {tuple(target.shape)}")
        if torch.isnan(logits).any():
            raise nan_error()
        keep = (target == 0) | (target == 1)
        x = logits.detach()[keep].float().clamp(-LIMIT, LIMIT)
        index = (x * BINS_PER_UNIT + BINS // 2).floor().long().clamp(max=BINS - 1) + BINS * target[keep].long()
        self.histogram += torch.bincount(index, minlength=2 * BINS).reshape(2, BINS)

    def compute(self) -> Tensor:
        """The histogram."""
        return self.histogram


def block_metrics(prefix: str) -> MetricCollection:
    """The scores of training blocks, one prediction each; ``update(prediction, target)``.

    Args:
        prefix: Put before each name, such as ``"train/"``.

    Returns:
        ``block_jaccard`` and ``block_accuracy``. Update them with probabilities or with 0 and 1, not with logits:
        torchmetrics takes logits that all happen to lie in [0, 1] for probabilities.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "block_jaccard": BinaryJaccardIndex(ignore_index=IGNORE),
        "block_accuracy": BinaryAccuracy(ignore_index=IGNORE),
    }
    return MetricCollection(metrics, prefix=prefix)
