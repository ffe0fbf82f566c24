"""Losses over voxels: two scores per voxel in, a scalar out; ignored voxels do not count."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mitoseg.errors import UserError
from mitoseg.volumes.labels import IGNORED


class VoxelLoss(nn.Module):
    """A loss of voxels in full precision also under autocast; 0, with a gradient of 0, if all voxels are ignored."""

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of scores (B, 2, *S) and int64 labels (B, *S) of 0, 1 and 255 (ignored).

        S is () for blocks, (Y, X) or (Z, Y, X).

        Raises:
            UserError: The shapes do not belong together.
        """
        B, *S = label.shape
        if logits.shape != (B, 2, *S):
            found = f"logits {tuple(logits.shape)}, labels {tuple(label.shape)}"
            raise UserError("a loss needs two scores for each label", found, "logits (B, 2, ...) to labels (B, ...)")
        with torch.autocast(logits.device.type, enabled=False):
            return self.of(logits if logits.dtype == torch.float64 else logits.float(), label)

    @abstractmethod
    def of(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of checked input in full precision; see `forward`."""


def log_odds(logits: Tensor) -> Tensor:
    """Difference of the two scores (B, 2, *S): (B, *S), the logit of the probability of a mitochondrion."""
    return logits[:, 1] - logits[:, 0]


def _nothing(logits: Tensor) -> Tensor:
    """Zero, with a gradient of zero for every score."""
    return logits[:0].sum()


def _checked_share(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise UserError(f"{name} is not a fraction", value, f"set {name} to a number from 0 to below 1")
    return value


def _checked_positive(name: str, value: float) -> float:
    if not value > 0:
        raise UserError(f"{name} must be positive", value, f"set {name} to a number above 0")
    return value


class MonaiLoss(VoxelLoss):
    """A loss of MONAI that treats voxels as a set, such as Dice, focal or Tversky, without the ignored ones.

    It needs ``to_onehot_y: true`` and ``softmax: true`` (``use_softmax`` in the focal loss). ``pooled``: over all
    voxels of the batch at once, else the mean over samples; blocks are always pooled, since one voxel has no overlap.
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
            return _nothing(logits)
        return torch.stack([self._of_set(scores, truth) for scores, truth in known]).mean()

    def _of_set(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss over all known voxels as one sample."""
        known = (label != IGNORED).flatten()
        logits_2n = logits.movedim(1, 0).flatten(1)[:, known]
        if not logits_2n.numel():
            return _nothing(logits)
        loss: Tensor = self.loss(logits_2n[None], label.flatten()[known][None, None])
        return loss


class Lovasz(VoxelLoss):
    """The binary Lovász hinge, a convex surrogate of 1 - JAC (Berman, Rannen Triki and Blaschko, CVPR 2018).

    It is 0 once every voxel is right by a margin of 1 in log-odds, so by itself it calibrates badly: see `Sum`.
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


class BoundaryCrossEntropy(VoxelLoss):
    """Cross-entropy of tiles with weights 1 + w exp(-d^2 / (2 sigma^2)), their mean weighted alike.

    d is the distance of a voxel to the nearest one of the other true class, in voxels along x, up to 3 sigma. The form
    is that of the weight map of the U-Net (Ronneberger, Fischer and Brox, 2015), with the distance to the nearest
    border in place of the sum of the two nearest.

    ``weight`` is w, ``sigma`` in voxels along x, ``spacing`` the relative distance of voxels along z, y and x, such as
    [10, 1, 1] for sections ten times as thick as a pixel is wide, of which tiles of one slice take the last two.
    """

    def __init__(
        self,
        weight: float = 4.0,
        sigma: float = 3.0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight, self.sigma = _checked_positive("weight", weight), _checked_positive("sigma", sigma)
        self.spacing = [_checked_positive("spacing", step) for step in spacing]
        if len(self.spacing) != 3:
            remedy = "give those of z, y and x, such as [10, 1, 1]"
            raise UserError("spacing is not three numbers", self.spacing, remedy)
        self.label_smoothing = _checked_share("label_smoothing", label_smoothing)

    def of(self, logits: Tensor, label: Tensor) -> Tensor:
        """See `VoxelLoss.forward`."""
        if label.ndim == 1:
            raise UserError("the boundary loss needs tiles, not blocks", None, "choose another loss for this network")
        distance = squared_border_distance(label, 3 * self.sigma, self.spacing[4 - label.ndim :])
        weight = 1 + self.weight * torch.exp(-distance / (2 * self.sigma**2))
        weight = weight * (label != IGNORED)
        return _weighted_cross_entropy(logits, label, weight.to(logits.dtype), self.label_smoothing)


@torch.no_grad()
def squared_border_distance(label: Tensor, reach: float, spacing: Sequence[float]) -> Tensor:
    """Squared Euclidean distance of each voxel to the nearest one of the other class, on any device.

    Along one axis after the other, d^2(p) <- min_k (d^2(p + k) + k^2): what Felzenszwalb and Huttenlocher (2012) do in
    linear time, here with elementwise minima over a short reach, up to which it is exact; beyond it is infinite.
    ``spacing`` is the distance of neighbours along each axis of S; ignored voxels are of no class.
    """
    classes = torch.arange(2, device=label.device).view(2, *[1] * label.ndim)
    distance = torch.where(label == classes, 0.0, math.inf)  # to class 0, to class 1: (2, B, *S)
    for axis, step in enumerate(spacing, start=2):
        before, length = distance, distance.shape[axis]
        distance = before.clone()
        for k in range(1, min(math.floor(reach / step + 1e-9), length - 1) + 1):
            for target, source in ((k, 0), (0, k)):
                here = distance.narrow(axis, target, length - k)
                torch.minimum(here, before.narrow(axis, source, length - k) + (k * step) ** 2, out=here)
    found = torch.where(label == 1, distance[0], distance[1])
    return found.masked_fill(found > reach**2 * (1 + 1e-6), math.inf)


class Sum(nn.Module):
    """A weighted sum of losses.

    Each of the ``terms`` has a ``loss`` and a ``weight`` (1 where missing). They are a list, or a mapping from names,
    which makes weights easy to set (``loss.terms.lovasz.weight=0.5``).
    """

    def __init__(self, terms: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        each = list(terms.values() if isinstance(terms, Mapping) else terms)
        if not each:
            raise UserError("a sum of losses has no terms", None, "give at least one")
        self.losses = nn.ModuleList([term["loss"] for term in each])
        self.weights = [_checked_positive("weight", term.get("weight", 1.0)) for term in each]

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """See `VoxelLoss.forward`."""
        parts = [weight * loss(logits, label) for weight, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(parts).sum()


class DeepSupervision(nn.Module):
    """A loss over all heads of a network, the last layer's first and coarser ones after it (Lee et al., 2015).

    ``weights`` are one for each head, or None for 1, 1/2, 1/4, ...; they are scaled to a sum of 1.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.weights = None if weights is None else [float(weight) for weight in weights]
        if self.weights is not None and not (all(w >= 0 for w in self.weights) and any(self.weights)):
            remedy = "give one for each head, such as [1, 0.5]"
            raise UserError("head weights are not positive", self.weights, remedy)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of logits (B, 2, *S), or of heads (B, heads, 2, *S) as MONAI's DynUNet returns in training."""
        if logits.ndim == label.ndim + 1:
            loss: Tensor = self.loss(logits, label)
            return loss
        heads = logits.unbind(1)
        weights = [0.5**head for head in range(len(heads))] if self.weights is None else self.weights
        if len(weights) != len(heads):
            found = f"{len(heads)} heads, {len(weights)} weights"
            raise UserError("each head of the network needs a weight", found, "give as many, or null for 1, 1/2, ...")
        parts = [weight * self.loss(head, label) for weight, head in zip(weights, heads, strict=True) if weight]
        return torch.stack(parts).sum() / sum(weights)


class CrossEntropy(VoxelLoss):
    """Mean cross-entropy over the voxels that are not ignored; 0 where all are.

    It is that of ``torch.nn.CrossEntropyLoss`` for two classes, which has no deterministic kernel for images on a GPU.
    ``label_smoothing`` is the share of the label that is spread evenly over both classes, ``class_weights`` are of
    background and mitochondrion.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.label_smoothing = _checked_share("label_smoothing", label_smoothing)
        self.class_weights = None if class_weights is None else list(map(float, class_weights))
        if self.class_weights is not None and (len(self.class_weights) != 2 or min(self.class_weights) <= 0):
            remedy = "give two, such as [1, 4]"
            raise UserError("class_weights are not two positive numbers", self.class_weights, remedy)

    def of(self, logits: Tensor, label: Tensor) -> Tensor:
        """See `VoxelLoss.forward`."""
        weight = (label != IGNORED).to(logits.dtype)
        if self.class_weights is not None:
            background, mitochondrion = self.class_weights
            weight = weight * torch.where(label == 1, mitochondrion, background)
        return _weighted_cross_entropy(logits, label, weight, self.label_smoothing)


def _weighted_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Weighted mean of the cross-entropy: sum(w CE) / sum(w), 0 where all weights are."""
    target = (label == 1).to(logits.dtype) * (1 - smoothing) + smoothing / 2
    loss = binary_cross_entropy_with_logits(log_odds(logits), target, weight, reduction="sum")
    total = weight.sum()
    return loss / torch.where(total > 0, total, 1)
