"""Cross-entropy of two classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mitoseg.errors import UserError
from mitoseg.training.losses.voxels import IGNORED, VoxelLoss, check_share, log_odds


class CrossEntropy(VoxelLoss):
    """Mean cross-entropy over the voxels that are not ignored.

    It is that of ``torch.nn.CrossEntropyLoss`` for two classes, written voxel by voxel with the log-odds: torch's own
    has no deterministic kernel for images on a GPU. It is 0 where all voxels are ignored.

    Args:
        label_smoothing: Share of the label that is spread evenly over both classes (Szegedy et al., 2016).
        class_weights: Weights of background and mitochondrion, or None for 1 and 1; the mean is weighted alike.

    Raises:
        UserError: The smoothing is no share, or there are not two positive weights.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.label_smoothing = check_share("label_smoothing", label_smoothing)
        self.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]
        if self.class_weights is not None and (len(self.class_weights) != 2 or min(self.class_weights) <= 0):
            raise UserError(
                "class_weights are no two positive numbers", self.class_weights, "give two, such as [1, 4]"
            )

    def of(self, logits: Tensor, label: Tensor) -> Tensor:
        """See `VoxelLoss.forward`."""
        weight = (label != IGNORED).to(logits.dtype)
        if self.class_weights is not None:
            background, mitochondrion = self.class_weights
            weight = weight * torch.where(label == 1, mitochondrion, background)
        return weighted_cross_entropy(logits, label, weight, self.label_smoothing)


def weighted_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor, smoothing: float = 0.0) -> Tensor:
    """Weighted mean of the cross-entropy: sum(w CE) / sum(w).

    Args:
        logits: (B, 2, *S).
        label: (B, *S).
        weight: (B, *S), 0 where the label is ignored. Where all are 0, the loss is 0.
        smoothing: See `CrossEntropy`.
    """
    target = (label == 1).to(logits.dtype) * (1 - smoothing) + smoothing / 2
    loss = binary_cross_entropy_with_logits(log_odds(logits), target, weight, reduction="sum")
    total = weight.sum()
    return loss / torch.where(total > 0, total, 1)
