"""What a prediction is: a network, how it is used, and what is saved of its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from torch import nn

from mitoseg.errors import UserError
from mitoseg.metrics import Calibration
from mitoseg.volumes import Normalization, VoxelSize

KINDS: dict[str, np.dtype[Any]] = {
    "probability": np.dtype(np.float32),
    "mask": np.dtype(np.uint8),
    "uncertainty": np.dtype(np.float32),
}
"""What can be saved, and the type of its voxels unless the user names another."""


def is_tile(tile: object) -> TypeGuard[tuple[int, int, int] | list[int]]:
    """Whether a value is a size (z, y, x) in voxels."""
    return isinstance(tile, list | tuple) and len(tile) == 3 and all(type(n) is int and n >= 1 for n in tile)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a network is used; commands and the Python interface have options of these names.

    Attributes:
        method: ``auto`` or one of `mitoseg.inference.METHODS`.
        tile: (z, y, x) voxels computed at once; None: by the free memory, for ``blend`` the network's own.
        overlap: Of the tiles of ``blend``, a share of the tile; None: `mitoseg.inference.methods.OVERLAPS`.
        window_stride: Of the method ``window``: every how many pixels one is answered.
        tta: Test-time augmentation, a key of `mitoseg.inference.SYMMETRIES`.
        consensus: How the answers of all views and members are combined, one of `mitoseg.inference.CONSENSUS`.
        precision: ``fp32`` or ``bf16``.
        save: One of `KINDS`, or ``log_odds`` for the network's, not calibrated.
        dtype: Of the saved voxels; uint8 probabilities and deviations are times 255, rounded.
        slices: Slices that go through a network on slices together.
    """

    method: str = "auto"
    tile: tuple[int, int, int] | None = None
    overlap: float | None = None
    window_stride: int = 1
    tta: str = "none"
    consensus: str = "mean"
    precision: str = "fp32"
    save: str = "probability"
    dtype: np.dtype[Any] = KINDS["probability"]
    slices: int = 1

    def __post_init__(self) -> None:
        if type(self.window_stride) is not int or self.window_stride < 1:
            raise UserError("window_stride is not a number of pixels", self.window_stride, "give 1 or more")
        if self.overlap is not None and (not isinstance(self.overlap, int | float) or not 0 <= self.overlap < 1):
            raise UserError("the overlap is not a share of a tile", self.overlap, "give a number from 0 to below 1")
        if self.tile is not None and not is_tile(self.tile):
            raise UserError("tile is not a size", self.tile, "give tile=[z,y,x], each at least 1")


@dataclass(frozen=True)
class Prediction(Options):
    """A network in eval mode, on its device, its options, and what is known from its training.

    Attributes:
        normalization: Of the training voxels.
        channels: How slices become input channels.
        calibration: Corrects the log-odds: prior shift, temperature, bias.
        threshold: Probability at and above which a voxel is foreground.
        voxel_size: (z, y, x) in nm for volumes that do not state it, or None.
    """

    network: nn.Module
    normalization: Normalization
    channels: str
    calibration: Calibration
    threshold: float
    voxel_size: VoxelSize | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the output: its kind, the threshold, and the factor from probability to voxel."""
        scale = 255 if self.save != "mask" and self.dtype == np.uint8 else 1
        return {"kind": self.save, "threshold": self.threshold, "scale": scale}

    def encode(self, found: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """The voxels to save: from log-odds a calibrated probability or mask; a deviation stays as it is."""
        if self.save == "log_odds":
            return found
        values = found if self.save == "uncertainty" else expit(self.calibration.apply(found))
        if self.save == "mask":
            values = values >= self.threshold
        elif self.dtype == np.uint8:
            values = np.rint(values * 255)
        encoded: npt.NDArray[Any] = values.astype(self.dtype)
        return encoded
