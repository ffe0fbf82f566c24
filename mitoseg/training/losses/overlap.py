"""Losses of the overlap of result and truth: MONAI's, and Lovász's extension of the Jaccard index."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mitoseg.training.losses.voxels import IGNORED, VoxelLoss, log_odds, nothing


class MonaiLoss(VoxelLoss):
    """A loss of MONAI that treats voxels as a set, such as Dice, focal or Tversky, without the ignored ones.

    Args:
        loss: From logits (1, 2, N) and labels (1, 1, N) to a scalar; so give it ``to_onehot_y: true`` and
            ``softmax: true`` (``use_softmax`` in the focal loss).
        pooled: Over all voxels of the batch at once, as a score is pooled; False: for each sample, then their mean.
            Samples of a single voxel (blocks) are always pooled, since one voxel has no overlap to speak of.
    """

    def __init__(self, loss: nn.Module, pooled: bool = True) -> None:
        super().__init__()
        self.loss, self.pooled = loss, pooled

    def of(self, logits: Tensor, label: Tensor) -> Tensor:
        """See `VoxelLoss.forward`."""
        if self.pooled or label.ndim == 1:
            return self._of_set(logits, label)
        samples = zip(logits.unsqueeze(1), label.unsqueeze(1), strict=True)
        known = [(scores, truth) for scores, truth in samples if (truth != IGNORED).any()]
        if not known:
            return nothing(logits)
        return torch.stack([self._of_set(scores, truth) for scores, truth in known]).mean()

    def _of_set(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss over all known voxels as one sample."""
        known = (label != IGNORED).flatten()
        logits_2n = logits.movedim(1, 0).flatten(1)[:, known]
        if not logits_2n.numel():
            return nothing(logits)
        loss: Tensor = self.loss(logits_2n[None], label.flatten()[known][None, None])
        return loss


class Lovasz(VoxelLoss):
    """The binary Lovász hinge, a convex surrogate of 1 - JAC (Berman, Rannen Triki and Blaschko, CVPR 2018).

    It is the Jaccard index of the mitochondria over all voxels of the batch. It is 0 once every voxel is right by a
    margin of 1 in log-odds, so it leaves probabilities badly calibrated by itself: add cross-entropy (`Sum`).
    """

    def of(self, logits: Tensor, label: Tensor) -> Tensor:
        """See `VoxelLoss.forward`."""
        known = (label != IGNORED).flatten()
        return lovasz_hinge(log_odds(logits).flatten()[known], label.flatten()[known])


def lovasz_hinge(log_odds_n: Tensor, label_n: Tensor) -> Tensor:
    r"""Lovász hinge of voxels.

    With hinge errors m = max(0, 1 - s (2 y - 1)) sorted downwards, it is sum_k m_k (D_k - D_(k-1)), where D_k is the
    Jaccard loss 1 - I_k / U_k if the k worst voxels are wrong. With P voxels of label 1, f_k of them among the first
    k, and b_k of label 0: I_k = P - f_k, U_k = P + b_k, and D_k - D_(k-1) is 1 / U_k where y_k = 1, and else
    I_k / (U_k (U_k - 1)), or 1 for the first voxel if P is 0. These are exact where differences of D are not.

    Args:
        log_odds_n: float (N,).
        label_n: (N,), 0 or 1.

    Returns:
        A scalar, 0 for no voxels.
    """
    truth_n = label_n == 1
    error_n = 1 - log_odds_n * (2 * truth_n.to(log_odds_n.dtype) - 1)
    error_n, order_n = error_n.sort(descending=True, stable=True)
    truth_n = truth_n[order_n].long()
    intersection_n = truth_n.sum() - truth_n.cumsum(0)
    union_n = truth_n.sum() + (1 - truth_n).cumsum(0)
    share_n = torch.where(union_n > 1, intersection_n / (union_n - 1).clamp(min=1), 1)
    step_n = torch.where(truth_n == 1, 1, share_n) / union_n
    return (error_n.relu() * step_n).sum()
