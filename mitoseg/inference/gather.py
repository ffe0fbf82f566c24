"""From several answers for the same voxels, of views and members, to one number for each voxel.

    mean         of the log-odds
    median       of the log-odds
    deviation    of the calibrated probabilities, with n in the denominator: how far the answers differ

The mask of the median of an odd number of answers is the majority of their masks, whatever the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mitoseg.errors import UserError
from mitoseg.metrics import Calibration

CONSENSUS = ("mean", "median")
"""What may be made of several answers."""


class Gather(Protocol):
    """Takes answers one by one."""

    def add(self, odds_zyx: Tensor) -> None:
        """Take one map of log-odds."""

    def result(self) -> Tensor:
        """What they make together, float32 of the same shape."""
        ...


class Mean:
    """The mean of the log-odds."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    def add(self, odds_zyx: Tensor) -> None:
        """Take one map of log-odds."""
        self._total = odds_zyx if self._total is None else self._total + odds_zyx
        self._count += 1

    def result(self) -> Tensor:
        """The mean."""
        assert self._total is not None
        return self._total / self._count


class Median:
    """The median of the log-odds; of an even number, the mean of the middle two."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []

    def add(self, odds_zyx: Tensor) -> None:
        """Take one map of log-odds."""
        self._found.append(odds_zyx)

    def result(self) -> Tensor:
        """The median."""
        return torch.stack([self._of(slices) for slices in zip(*self._found, strict=True)])

    @staticmethod
    def _of(maps_yx: Sequence[Tensor]) -> Tensor:
        ordered = torch.stack(list(maps_yx)).sort(0).values
        return (ordered[(len(maps_yx) - 1) // 2] + ordered[len(maps_yx) // 2]) / 2


class Deviation:
    """The standard deviation of the calibrated probabilities, updated by each (Welford, 1962, Technometrics 4(3))."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._count = 0
        self._mean = self._squares = torch.zeros(())

    def add(self, odds_zyx: Tensor) -> None:
        """Take one map of log-odds."""
        probability = torch.sigmoid(self._calibration.apply(odds_zyx))
        self._count += 1
        if self._count == 1:
            self._mean, self._squares = probability, torch.zeros_like(probability)
            return
        step = probability - self._mean
        self._mean = self._mean + step / self._count
        self._squares = self._squares + step * (probability - self._mean)

    def result(self) -> Tensor:
        """The deviation, from 0 to 0.5."""
        return (self._squares / self._count).sqrt()


def gather_bytes(save: str, consensus: str, count: int) -> int:
    """Memory for each voxel while answers are gathered, besides that of one answer."""
    if save == "uncertainty":
        return 20
    return 4 * count if consensus == "median" else 4


def make_gather(save: str, consensus: str, calibration: Calibration) -> Gather:
    """What takes the answers of one tile."""
    if save == "uncertainty":
        return Deviation(calibration)
    return Median() if consensus == "median" else Mean()


def check_answers(save: str, consensus: str, count: int) -> None:
    """Refuse what a number of answers cannot give.

    Raises:
        UserError: No such consensus, or the deviation of a single answer is asked for.
    """
    if consensus not in CONSENSUS:
        raise UserError("no such consensus", consensus, f"choose one of {', '.join(CONSENSUS)}")
    if save == "uncertainty" and count < 2:
        raise UserError(
            "uncertainty is how far several answers differ, here there is", count, "give tta=flips or an ensemble"
        )
