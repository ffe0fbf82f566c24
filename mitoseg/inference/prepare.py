"""From a checkpoint's model and what a user chose to a `Prediction`."""

from __future__ import annotations

import numpy as np
import torch

from mitoseg.errors import UserError
from mitoseg.inference.devices import choose_device
from mitoseg.inference.methods import Options
from mitoseg.inference.precision import choose_precision
from mitoseg.inference.predict import KINDS, Prediction
from mitoseg.inference.protocol import dimensions
from mitoseg.metrics import Calibration
from mitoseg.networks.checkpoint import Model
from mitoseg.volumes import Normalization
from mitoseg.volumes.units import check_voxel_size

INSTANCES = "instances"
"""What can be saved besides what a network gives; it is made of masks."""
CUDA_SLICES = 8
"""Slices that go through a network on slices together on a GPU; on a CPU one after the other is faster."""


def make_prediction(
    model: Model,
    *,
    method: str = "auto",
    tile: object = None,
    overlap: float | None = None,
    window_stride: int = 1,
    tta: str = "none",
    consensus: str = "mean",
    accelerator: str = "auto",
    precision: str = "auto",
    save: str = "probability",
    dtype: str | None = None,
    threshold: float | None = None,
    normalization: Normalization | None = None,
) -> Prediction:
    """A checkpoint's model on its device, with what is to be saved; ``normalization`` replaces the checkpoint's.

    Raises:
        UserError: No such thing to save, type, threshold, precision or device.
    """
    threshold = model.threshold if threshold is None else threshold
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise UserError("the threshold is not a probability", threshold, "give a number from 0 to 1")
    recorded, calibration = _recorded(model)
    device = choose_device(accelerator)
    layout = torch.channels_last if dimensions(model.network) == 2 else torch.channels_last_3d
    return Prediction(
        network=model.network.to(device, memory_format=layout),  # type: ignore[call-overload]
        normalization=normalization or recorded,
        channels=model.channels,
        calibration=calibration,
        threshold=threshold,
        method=method,
        options=Options(
            window_stride,
            _sizes(tile),
            overlap,
            CUDA_SLICES if device.type == "cuda" else 1,
        ),
        tta=tta,
        consensus=consensus,
        precision=choose_precision(precision, device, model.record),
        save=save,
        dtype=_saved_type(save, dtype),
        voxel_size=model.voxel_size and check_voxel_size(model.voxel_size),
    )


def _sizes(tile: object) -> tuple[int, int, int] | None:
    """``tile=`` as three numbers; `Options` checks them further.

    Raises:
        UserError: There are not three whole numbers.
    """
    if tile is None:
        return None
    if not isinstance(tile, list | tuple) or len(tile) != 3 or not all(type(n) is int for n in tile):
        raise UserError("tile is not a size", tile, "give tile=[z,y,x], each at least 1")
    return (tile[0], tile[1], tile[2])


def _recorded(model: Model) -> tuple[Normalization, Calibration]:
    """What the checkpoint says of grey values and probabilities.

    Raises:
        UserError: It cannot be used.
    """
    try:
        return Normalization(**model.normalization), Calibration(**model.calibration)
    except TypeError as error:
        what = "the checkpoint's normalization or calibration cannot be used"
        raise UserError(what, [model.normalization, model.calibration], "train again, or use another") from error


def _saved_type(save: str, dtype: str | None) -> np.dtype[np.generic]:
    if save not in KINDS:
        raise UserError("cannot save that", save, f"choose one of {', '.join((*KINDS, INSTANCES))}")
    kind = np.dtype(dtype) if dtype in ("uint8", "float32") else KINDS[save]
    if (dtype is not None and kind != dtype) or (save == "mask" and kind != np.uint8):
        raise UserError(
            f"cannot save a {save} as that type", dtype, "use dtype=float32 or dtype=uint8; masks are uint8"
        )
    return kind
