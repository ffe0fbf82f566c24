"""What the losses share: the check of shapes, full precision, and the ignored label."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from mitoseg.errors import UserError
from mitoseg.volumes.labels import IGNORED

__all__ = ["IGNORED", "VoxelLoss", "check_positive", "check_share", "log_odds", "nothing"]


class VoxelLoss(nn.Module):
    """A loss of voxels, computed in float32 (float64 stays) also under autocast.

    A subclass computes it in `of`. Where every voxel is ignored it must be 0, with a gradient of 0.
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            logits: (B, 2, *S), scores of background and mitochondrion; S is () for blocks, (Y, X) or (Z, Y, X).
            label: int64 (B, *S): 0, 1 or 255 (ignored).

        Returns:
            A scalar of at least float32.

        Raises:
            UserError: The shapes do not belong together.
        """
        B, *S = label.shape
        if logits.shape != (B, 2, *S):
            found = f"logits {tuple(logits.shape)}, labels {tuple(label.shape)}"
            raise UserError("a loss takes two scores for each label", found, "logits (B, 2, ...) to labels (B, ...)")
        with torch.autocast(logits.device.type, enabled=False):
            return self.of(logits if logits.dtype == torch.float64 else logits.float(), label)

    @abstractmethod
    def of(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of checked input in full precision; see `forward`."""


def log_odds(logits: Tensor) -> Tensor:
    """Difference of the two scores (B, 2, *S): (B, *S), the logit of the probability of a mitochondrion."""
    return logits[:, 1] - logits[:, 0]


def nothing(logits: Tensor) -> Tensor:
    """Zero, with a gradient of zero for every score."""
    return logits[:0].sum()


def check_share(name: str, value: float) -> float:
    """A number from 0 to below 1.

    Raises:
        UserError: It is not.
    """
    if not 0 <= value < 1:
        raise UserError(f"{name} is no share", value, f"give {name} a number from 0 to below 1")
    return value


def check_positive(name: str, value: float) -> float:
    """A number above 0.

    Raises:
        UserError: It is not.
    """
    if not value > 0:
        raise UserError(f"{name} must be positive", value, f"give {name} a number above 0")
    return value
