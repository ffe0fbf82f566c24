"""Cross-entropy that counts more near the borders of mitochondria, where neighbours touch and scores are lost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mitoseg.errors import UserError
from mitoseg.training.losses.cross_entropy import weighted_cross_entropy
from mitoseg.training.losses.voxels import IGNORED, VoxelLoss, check_positive, check_share

REACH = 3
"""Standard deviations from the border at which the extra weight, there 1 % of its peak, is cut off."""


class BoundaryCrossEntropy(VoxelLoss):
    """Cross-entropy of tiles with weights 1 + w exp(-d^2 / (2 sigma^2)), their mean weighted alike.

    d is the Euclidean distance of a voxel to the nearest one of the other true class, in voxels along x; it is exact
    up to 3 sigma and infinite beyond. The form is that of the weight map of the U-Net (Ronneberger, Fischer and Brox,
    2015), with the distance to the nearest border in place of the sum of the two nearest.

    Args:
        weight: w, the extra weight at a border.
        sigma: Width of the border in voxels along x.
        spacing: Relative distance of voxels along z, y and x, such as [10, 1, 1] for sections ten times as thick as a
            pixel is wide; the last two for tiles of one slice.
        label_smoothing: See `CrossEntropy`.

    Raises:
        UserError: An option is out of range; or, in use, blocks are given, which have no border.
    """

    def __init__(
        self,
        weight: float = 4.0,
        sigma: float = 3.0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight, self.sigma = check_positive("weight", weight), check_positive("sigma", sigma)
        self.spacing = [check_positive("spacing", step) for step in spacing]
        if len(self.spacing) != 3:
            raise UserError(
                "spacing has no three numbers", self.spacing, "give those of z, y and x, such as [10, 1, 1]"
            )
        self.label_smoothing = check_share("label_smoothing", label_smoothing)

    def of(self, logits: Tensor, label: Tensor) -> Tensor:
        """See `VoxelLoss.forward`."""
        if label.ndim == 1:
            raise UserError("the boundary loss needs tiles, not blocks", None, "choose another loss for this network")
        distance = squared_border_distance(label, REACH * self.sigma, self.spacing[4 - label.ndim :])
        weight = 1 + self.weight * torch.exp(-distance / (2 * self.sigma**2))
        weight = weight * (label != IGNORED)
        return weighted_cross_entropy(logits, label, weight.to(logits.dtype), self.label_smoothing)


@torch.no_grad()
def squared_border_distance(label: Tensor, reach: float, spacing: Sequence[float]) -> Tensor:
    """Squared Euclidean distance of each voxel to the nearest one of the other class, on any device.

    Along one axis after the other, d^2(p) <- min_k (d^2(p + k) + k^2): what Felzenszwalb and Huttenlocher (2012) do in
    linear time, here with all k of a short reach, which needs nothing but elementwise minima.

    Args:
        label: (B, *S): 0, 1 or ignored, which is no class.
        reach: Longest distance that matters.
        spacing: Distance of neighbours along each axis of S.

    Returns:
        float32 (B, *S): exact up to ``reach`` squared, infinite beyond.
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
