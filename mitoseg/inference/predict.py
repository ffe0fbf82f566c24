"""A volume through a network, slab by slab, into a writer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import nn

from mitoseg.geometry import Box, slabs
from mitoseg.inference.methods import choose_method
from mitoseg.metrics import Calibration
from mitoseg.volumes import Normalization, Volume, check_image_values, read_channels

KINDS: dict[str, np.dtype[Any]] = {"probability": np.dtype(np.float32), "mask": np.dtype(np.uint8)}
"""What can be saved, and the type of its voxels unless the user names another."""


class BoxWriter(Protocol):
    """Whatever takes finished boxes: a volume writer, or an array in memory."""

    def write(self, box: Box, array_zyx: npt.NDArray[Any], /) -> None:
        """Take the voxels of one box."""


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
        save: One of `KINDS`.
        dtype: Of the saved voxels; uint8 probabilities are times 255, rounded.
    """

    network: nn.Module
    normalization: Normalization
    channels: str
    calibration: Calibration
    threshold: float
    method: str = "auto"
    save: str = "probability"
    dtype: np.dtype[Any] = KINDS["probability"]

    @property
    def metadata(self) -> dict[str, Any]:
        """What travels with the output: its kind, the threshold, and the factor from probability to voxel."""
        scale = 255 if self.save == "probability" and self.dtype == np.uint8 else 1
        return {"kind": self.save, "threshold": self.threshold, "scale": scale}

    def log_odds(self, volume: Volume, z: int, box: Box | None = None) -> npt.NDArray[np.float32]:
        """Raw log-odds (Y, X) of one slice, before calibration."""
        _, method = choose_method(self.method, self.network)
        device = next(self.network.parameters()).device
        box_yx = None if box is None else Box(box.start[1:], box.stop[1:])
        grey_cyx = read_channels(volume, z, self.channels, box_yx)
        check_image_values(grey_cyx, volume.path)
        image_cyx = self.normalization.apply(grey_cyx)
        image_bcyx = torch.from_numpy(image_cyx)[None].to(device, memory_format=torch.channels_last)
        with torch.inference_mode():
            result: npt.NDArray[np.float32] = method(self.network, image_bcyx)[0].float().cpu().numpy()  # type: ignore[arg-type]
        return result

    def encode(self, log_odds: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Calibrated probability or mask, in the type that is saved."""
        probability = expit(self.calibration.apply(log_odds))
        if self.save == "mask":
            probability = probability >= self.threshold
        elif self.dtype == np.uint8:
            probability = np.rint(probability * 255)
        encoded: npt.NDArray[Any] = probability.astype(self.dtype)
        return encoded


def predict_volume(
    prediction: Prediction,
    volume: Volume,
    writer: BoxWriter,
    *,
    box: Box | None = None,
    on_slice: Callable[[int], None] | None = None,
) -> None:
    """Predict every slice of a volume (or of one box of it) and hand it to a writer.

    Args:
        prediction: The network and what it needs.
        volume: The image; its size is the size of the result.
        writer: Takes one slice at a time, in coordinates of the box.
        box: The part to predict; slices next to it are still read as neighbours.
        on_slice: Called after each slice with the number of slices done.
    """
    area = box or volume.box
    for done, slab in enumerate(slabs(area, 1), start=1):
        z = slab.start[0]
        log_odds_yx = prediction.log_odds(volume, z, None if box is None else slab)
        writer.write(slab.inside(area), prediction.encode(log_odds_yx)[None])
        if on_slice is not None:
            on_slice(done)
