"""What a prediction is: a network, how it is used, and what is saved of its answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from torch import nn

from mitoseg.inference.methods import Options
from mitoseg.metrics import Calibration
from mitoseg.volumes import Normalization, VoxelSize

KINDS: dict[str, np.dtype[Any]] = {
    "probability": np.dtype(np.float32),
    "mask": np.dtype(np.uint8),
    "uncertainty": np.dtype(np.float32),
}
"""What can be saved, and the type of its voxels unless the user names another."""


@dataclass(frozen=True)
class Prediction:
    """How a network's scores become what is saved.

    Attributes:
        network: In eval mode, on its device.
        normalization: Of the training voxels.
        channels: How slices become input channels.
        calibration: Corrects the log-odds: prior shift, temperature, bias.
        threshold: Probability at and above which a voxel is foreground.
        method: ``auto`` or one of `mitoseg.inference.METHODS`.
        options: What the method can be told.
        tta: Test-time augmentation, a key of `mitoseg.inference.SYMMETRIES`.
        consensus: What the answers of all views and members make together, one of `mitoseg.inference.CONSENSUS`.
        precision: ``fp32`` or ``bf16``.
        save: One of `KINDS`, or ``log_odds`` for what the network gave, not calibrated.
        dtype: Of the saved voxels; uint8 probabilities and deviations are times 255, rounded.
        voxel_size: (z, y, x) in nm that volumes have which do not say it, or None.
    """

    network: nn.Module
    normalization: Normalization
    channels: str
    calibration: Calibration
    threshold: float
    method: str = "auto"
    options: Options = field(default_factory=Options)
    tta: str = "none"
    consensus: str = "mean"
    precision: str = "fp32"
    save: str = "probability"
    dtype: np.dtype[Any] = KINDS["probability"]
    voxel_size: VoxelSize | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What travels with the output: its kind, the threshold, and the factor from probability to voxel."""
        scale = 255 if self.save != "mask" and self.dtype == np.uint8 else 1
        return {"kind": self.save, "threshold": self.threshold, "scale": scale}

    def encode(self, found: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """What is saved, in its type: from log-odds a calibrated probability or mask; a deviation as it is."""
        if self.save == "log_odds":
            return found
        values = found if self.save == "uncertainty" else expit(self.calibration.apply(found))
        if self.save == "mask":
            values = values >= self.threshold
        elif self.dtype == np.uint8:
            values = np.rint(values * 255)
        encoded: npt.NDArray[Any] = values.astype(self.dtype)
        return encoded
