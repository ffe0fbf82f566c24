"""The scores as torchmetrics, for training.

Whole slices are counted into one log-odds histogram, summed exactly over devices; scores, threshold and calibration
come from it by the functions of `mitoseg.metrics.histogram` and `mitoseg.metrics.calibration`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mitoseg.metrics.counts import Counts, scores
from mitoseg.metrics.histogram import BINS, BINS_PER_UNIT, LIMIT, nan_error


class LogitHistogram(Metric):
    """Sums `logit_histogram`, int64 (2, BINS), over batches and devices.

    With several domains those of each, (domains, 2, BINS).
    """

    is_differentiable = False
    full_state_update = False
    histogram: Tensor

    def __init__(self, domains: int = 1) -> None:
        super().__init__()
        shape = (2, BINS) if domains == 1 else (domains, 2, BINS)
        self.add_state("histogram", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor, domain: int = 0) -> None:
        """Add log-odds of any shape and float type; the target is 0 background, 1 foreground, 255 ignored."""
        if logits.shape != target.shape:
            raise ValueError(f"logits and target differ in shape: {tuple(logits.shape)} and {tuple(target.shape)}")
        if torch.isnan(logits).any():
            raise nan_error()
        keep = (target == 0) | (target == 1)
        x = logits.detach()[keep].float().clamp(-LIMIT, LIMIT)
        index = (x * BINS_PER_UNIT + BINS // 2).floor().long().clamp(max=BINS - 1) + BINS * target[keep].long()
        self.histogram.view(-1, 2, BINS)[domain] += torch.bincount(index, minlength=2 * BINS).reshape(2, BINS)

    def compute(self) -> Tensor:
        """The histogram."""
        return self.histogram


class BlockCounts(Metric):
    """Counts of training blocks or voxels by truth and prediction, int64 (4): tn, fp, fn, tp.

    Updating costs a few small operations and never waits for the device, since it is done at every step.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, label: Tensor) -> None:
        """Add ``scores`` (B, 2, ...) and ``label`` (B, ...) of 0 and 1; any other label counts nowhere."""
        kind = (2 * label + (scores[:, 1] > scores[:, 0])).flatten()
        self.counts += torch.stack([(kind == k).sum() for k in range(4)])

    def compute(self) -> Tensor:
        """The counts, summed over all processes."""
        return self.counts

    def load(self, counts: list[int]) -> None:
        """Go on from counts of before."""
        self.reset()
        self.update(self.counts.new_empty((0, 2)), self.counts.new_empty(0))  # torchmetrics warns without any
        self.counts += torch.tensor(counts, device=self.counts.device)


def as_counts(counts: Tensor) -> Counts:
    """The state of `BlockCounts` by name."""
    tn, fp, fn, tp = counts.tolist()
    return Counts(tp=tp, fp=fp, fn=fn, tn=tn)


def block_scores(counts: Counts) -> dict[str, float]:
    """``block_jaccard`` (of mitochondria) and ``block_accuracy`` of training blocks, at a probability of one half.

    >>> block_scores(Counts(tp=1, fp=1, fn=1, tn=1))
    {'block_jaccard': 0.3333333333333333, 'block_accuracy': 0.5}
    """
    accuracy = (counts.tp + counts.tn) / max(1, counts.voxels)
    return {"block_jaccard": scores(counts)["jaccard_foreground"], "block_accuracy": accuracy}
