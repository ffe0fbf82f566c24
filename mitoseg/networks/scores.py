"""What the scores of a network mean."""

from __future__ import annotations

from torch import Tensor

from mitoseg.errors import UserError


def log_odds(scores: Tensor) -> Tensor:
    """Log-odds of "mitochondrion" from scores.

    Args:
        scores: (B, 2, ...), background and mitochondrion, or (B, 1, ...), which are log-odds already.

    Returns:
        float32 (B, ...).

    Raises:
        UserError: Another number of classes.
    """
    if scores.shape[1] not in (1, 2):
        raise UserError("the network's scores are not those of two classes", scores.shape[1], "use one or two outputs")
    wide = scores.float()
    return wide[:, 1] - wide[:, 0] if scores.shape[1] == 2 else wide[:, 0]
