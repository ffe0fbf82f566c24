"""The scores as torchmetrics, for training: the state is a log-odds histogram, the functions are the same.

The classes hold the same state, so a `MetricCollection` updates it once for all of them (a compute group), and it is
summed exactly over devices.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryJaccardIndex

from mitoseg.metrics.counts import IGNORE, scores
from mitoseg.metrics.histogram import BINS, BINS_PER_UNIT, LIMIT, average_precision, best_index, curve, nan_error
from mitoseg.metrics.histogram import best_threshold as best_threshold_of


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

    def numpy(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """The histogram as an array, for `mitoseg.metrics.histogram` and `mitoseg.metrics.calibration`."""
        return self.histogram.cpu().numpy()

    def scalar(self, value: float) -> Tensor:
        """A score as a tensor on the metric's device."""
        return torch.tensor(value, dtype=torch.float32, device=self.histogram.device)


class BestJaccard(LogitHistogram):
    """The Jaccard index at the threshold that maximises the foreground's; NaN without foreground.

    Args:
        kind: "foreground", "background", or "mean" of both.
    """

    higher_is_better = True

    def __init__(self, kind: Literal["foreground", "background", "mean"] = "foreground") -> None:
        super().__init__()
        self.kind = kind

    def compute(self) -> Tensor:
        """The score, in [0, 1]."""
        points = curve(self.numpy())
        index = best_index(points)
        value = float("nan") if index is None else scores(points.counts(index))[f"jaccard_{self.kind}"]
        return self.scalar(value)


class BestThreshold(LogitHistogram):
    """The threshold that maximises the foreground's Jaccard index, as a probability of the logits as given."""

    def compute(self) -> Tensor:
        """The threshold, in [0, 1]."""
        return torch.sigmoid(self.scalar(best_threshold_of(curve(self.numpy()))[0]))


class AveragePrecision(LogitHistogram):
    """Area under the curve of precision over recall; NaN without foreground."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """The score, in [0, 1]."""
        return self.scalar(average_precision(curve(self.numpy())))


def whole_slice_metrics(prefix: str) -> MetricCollection:
    """The scores of whole slices, all from one shared histogram; ``update(log_odds, target)``.

    Args:
        prefix: Put before each name, such as ``"val/"``.

    Returns:
        ``jaccard_foreground``, ``jaccard_background``, ``jaccard_mean``, ``threshold``, ``average_precision``.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "jaccard_foreground": BestJaccard("foreground"),
        "jaccard_background": BestJaccard("background"),
        "jaccard_mean": BestJaccard("mean"),
        "threshold": BestThreshold(),
        "average_precision": AveragePrecision(),
    }
    return MetricCollection(metrics, prefix=prefix, compute_groups=[list(metrics)])


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
