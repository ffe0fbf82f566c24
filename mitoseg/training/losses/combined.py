"""Losses made of losses: a weighted sum, and the heads of a network with deep supervision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mitoseg.errors import UserError
from mitoseg.training.losses.voxels import check_positive

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Sum(nn.Module):
    """A weighted sum of losses.

    Args:
        terms: Each with a ``loss`` and its ``weight`` (1 where missing); a list, or a mapping from names, which makes
            weights easy to set (``loss.terms.lovasz.weight=0.5``).

    Raises:
        UserError: There are no terms, or a weight is not positive.
    """

    def __init__(self, terms: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        each = list(terms.values() if isinstance(terms, Mapping) else terms)
        if not each:
            raise UserError("a sum of losses has no terms", None, "give at least one")
        self.losses = nn.ModuleList([term["loss"] for term in each])
        self.weights = [check_positive("weight", term.get("weight", 1.0)) for term in each]

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """See `VoxelLoss.forward`."""
        parts = [weight * loss(logits, label) for weight, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(parts).sum()


class DeepSupervision(nn.Module):
    """A loss over all heads of a network, the last layer's first and coarser ones after it (Lee et al., 2015).

    Plain logits pass straight through, so every loss can be wrapped.

    Args:
        loss: From logits (B, 2, *S) and labels (B, *S) to a scalar.
        weights: One for each head, or None for halves: 1, 1/2, 1/4, ...; they are scaled to a sum of 1.

    Raises:
        UserError: A weight is negative or none is above 0; or, in use, there are more or fewer heads.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.weights = None if weights is None else [float(weight) for weight in weights]
        if self.weights is not None and (min(self.weights, default=0) < 0 or not any(self.weights)):
            raise UserError(
                "weights of heads are not positive", self.weights, "give one for each head, such as [1, 0.5]"
            )

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            logits: (B, 2, *S); or a head each in a list, where coarser ones are interpolated to S; or stacked as
                (B, heads, 2, *S), as MONAI's DynUNet returns them in training.
            label: int64 (B, *S).
        """
        if isinstance(logits, Tensor):
            if logits.ndim == label.ndim + 1:
                loss: Tensor = self.loss(logits, label)
                return loss
            logits = logits.unbind(1)
        weights = [0.5**head for head in range(len(logits))] if self.weights is None else self.weights
        if len(weights) != len(logits):
            found = f"{len(logits)} heads, {len(weights)} weights"
            raise UserError("each head of the network needs a weight", found, "give as many, or none for halves")
        parts = [w * self.loss(_match(head, label), label) for w, head in zip(weights, logits, strict=True) if w]
        return torch.stack(parts).sum() / sum(weights)


def _match(logits: Tensor, label: Tensor) -> Tensor:
    """Logits (B, 2, *s) interpolated to the labels' size."""
    if logits.shape[2:] == label.shape[1:]:
        return logits
    return interpolate(logits, label.shape[1:], mode=_MODES[label.ndim - 1], align_corners=False)
