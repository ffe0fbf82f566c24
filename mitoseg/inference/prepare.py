"""What a prediction is, and how it is made of a checkpoint's model, a volume and a user's choices."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import nn

from mitoseg.errors import UserError
from mitoseg.inference.precision import choose_precision
from mitoseg.metrics import Calibration
from mitoseg.networks.checkpoint import Model
from mitoseg.networks.kinds import dimensions
from mitoseg.volumes import CHANNEL_OFFSETS, Normalization, Volume, VoxelSize, measure_normalization
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.base import encoded_volume
from mitoseg.volumes.normalize import FAR_GREYS, MatchedVolume, grey_distance, sample_greys
from mitoseg.volumes.padding import blanked, has_tissue
from mitoseg.volumes.resampling import resampled

log = logging.getLogger(__name__)
KINDS: dict[str, np.dtype[Any]] = {
    "probability": np.dtype(np.float32),
    "mask": np.dtype(np.uint8),
    "uncertainty": np.dtype(np.float32),
}
"""What can be saved, and the type of its voxels unless the user names another."""
INSTANCES = "instances"
"""What can be saved besides `KINDS`; it is made of masks."""
CUDA_SLICES = 8
"""Slices that go through a network on slices together on a GPU; on a CPU one after the other is faster."""


def is_tile(tile: object) -> TypeGuard[tuple[int, int, int] | list[int]]:
    """Whether a value is a size (z, y, x) in voxels."""
    return isinstance(tile, list | tuple) and len(tile) == 3 and all(type(n) is int and n >= 1 for n in tile)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a network is used; commands and the Python interface have options of these names.

    ``tile``: voxels (z, y, x) computed at once, None by the free memory; ``slices``: how many go through together.
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
            raise UserError("the overlap is not a fraction of a tile", self.overlap, "give a number from 0 to below 1")
        if self.tile is not None and not is_tile(self.tile):
            raise UserError("tile is not a size", self.tile, "give tile=[z,y,x], each at least 1")


@dataclass(frozen=True)
class Prediction(Options):
    """A network in eval mode, on its device, its options, and what is known from its training.

    ``voxel_size`` is (z, y, x) in nm for volumes that do not state it; from ``threshold`` on a voxel is foreground.
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


def make_prediction(
    model: Model,
    *,
    accelerator: str = "auto",
    precision: str = "auto",
    save: str = "probability",
    dtype: str | None = None,
    threshold: float | None = None,
    tile: Sequence[int] | None = None,
    normalization: Normalization | None = None,
    **options: Any,  # noqa: ANN401 (of the fields' types)
) -> Prediction:
    """Put a checkpoint's model on its device, with the further fields of `mitoseg.inference.Options`.

    ``threshold`` and ``normalization`` replace those of the checkpoint.
    """
    threshold = model.threshold if threshold is None else threshold
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise UserError("the threshold is not a probability", threshold, "give a number from 0 to 1")
    try:
        recorded, calibration = Normalization(**model.normalization), Calibration(**model.calibration)
    except TypeError as error:
        what = "the checkpoint's normalization or calibration cannot be used"
        raise UserError(what, [model.normalization, model.calibration], "train again, or use another") from error
    device = choose_device(accelerator)
    layout = torch.channels_last if dimensions(model.network) == 2 else torch.channels_last_3d
    if save not in KINDS:
        raise UserError("cannot save that", save, f"choose one of {', '.join((*KINDS, INSTANCES))}")
    kind = np.dtype(dtype) if dtype in ("uint8", "float32") else KINDS[save]
    if (dtype is not None and kind != dtype) or (save == "mask" and kind != np.uint8):
        remedy = "use dtype=float32 or dtype=uint8; masks are uint8"
        raise UserError(f"cannot save a {save} as that type", dtype, remedy)
    return Prediction(
        network=model.network.to(device, memory_format=layout),  # type: ignore[call-overload]
        normalization=normalization or recorded,
        channels=model.channels,
        calibration=calibration,
        threshold=threshold,
        voxel_size=model.voxel_size and check_voxel_size(model.voxel_size),
        precision=choose_precision(precision, device, model.record),
        save=save,
        dtype=kind,
        tile=tuple(tile) if isinstance(tile, list) else tile,  # type: ignore[arg-type]
        **{"slices": CUDA_SLICES if device.type == "cuda" else 1, **options},
    )


def choose_device(accelerator: str) -> torch.device:
    """The device of an accelerator; ``auto`` takes a GPU where there is one."""
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    here["gpu"] = here["cuda"]
    if accelerator == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if here[name]))
    if not here.get(accelerator):
        usable = ", ".join(name for name, there in here.items() if there)
        raise UserError("no such accelerator here", accelerator, f"use auto or one of {usable}")
    return torch.device("cuda" if accelerator == "gpu" else accelerator)


CHOICES = ("checkpoint", "volume", "match")


def adapt_greys(choice: str, volume: Volume, model: Model) -> tuple[Volume, Normalization | None]:
    """The volume as it is to be read, and its normalisation; None for that of the checkpoint.

    ``choice``: as in training (checkpoint), by the volume's own mean and deviation, or matched quantile by quantile.
    """
    if choice == "checkpoint":
        choice = model.record.get("normalize", choice)
    if choice not in CHOICES:
        raise UserError("no such way to normalise", choice, f"choose one of {', '.join(CHOICES)}")
    if not has_tissue(volume):
        return volume, None  # which is told when all is done
    if choice == "volume":
        return volume, measure_normalization([(volume, volume.box)])
    if choice == "match":
        if (quantiles := _quantiles(model)) is None:
            what = "the checkpoint lacks the grey-value quantiles of its training volume"
            raise UserError(what, None, "give normalize=volume")
        return MatchedVolume(volume, quantiles), None
    if (distance := greys_apart(volume, model)) > FAR_GREYS:
        text = (
            "%s has other grey values than training (%.2g of its deviations apart): give normalize=match, "
            "or invert the image if it is bright where training is dark"
        )
        log.warning(text, volume.path, distance)
    return volume, None


def _quantiles(model: Model) -> list[float] | None:
    quantiles = model.record.get("grey_quantiles")
    return quantiles if isinstance(quantiles, list) and len(quantiles) > 1 else None


def greys_apart(volume: Volume, model: Model) -> float:
    """Distance of the grey values from those of training, see `mitoseg.volumes.normalize`; 0 where it is not known."""
    quantiles = _quantiles(model)
    greys = sample_greys(volume) if quantiles else np.empty(0)
    return grey_distance(greys, quantiles) if quantiles and greys.size else 0.0


NEAR = 1.1
"""Voxel sizes that differ by less are taken as equal: resampling would cost sharpness and mend nothing."""
BETWEEN = 2.0
"""The largest ratio along z for networks on slices that see their neighbours."""
FAR_VOXEL_SIZE = 1.25
"""Voxel sizes that differ by more are worth a warning where the user wants nothing resampled."""


def resample_input(choice: object, volume: Volume, model: Model) -> Volume:
    """The volume as the network is to see it.

    ``choice`` is ``none``, (z, y, x) in nm, or ``auto``: the checkpoint's voxel size where it differs by `NEAR` or
    more.
    """
    own, trained = volume.voxel_size, model.voxel_size
    choice = choice.tolist() if isinstance(choice, np.ndarray) else choice
    if choice == "none":
        if has_other_voxels(volume, model):
            advice = "give resample=auto to resample it"
            text = f"%s has voxels of %s nm, the network was trained on %s nm: {advice}"
            log.warning(text, volume.path, _by(own or ()), _by(trained or ()))
        return volume
    if choice == "auto":
        if own is not None and trained is None:
            text = "the checkpoint states no voxel size, so %s is not resampled: give resample=[z,y,x] in nm"
            log.warning(text, volume.path)
        elif trained is None:
            log.warning("%s and the checkpoint have no voxel size, so nothing is resampled", volume.path)
        elif own is None:
            text = "%s has no voxel size: taking the checkpoint's, %s nm, so it is not resampled; or give voxel_size="
            log.warning(text + "[z,y,x]", volume.path, _by(trained))
        if own is None or trained is None:
            return volume
        target = size_seen(own, trained, model)
    elif isinstance(choice, str) or not isinstance(choice, Sequence):
        raise UserError("no such way to resample", choice, "choose none, auto, or [z,y,x] in nm")
    else:
        target = check_voxel_size(choice)
    seen = resampled(volume, target)
    if seen is not volume:
        text = "%s: resampled from voxels of %s nm to %s nm, %s voxels to %s; the result is resampled back to its grid"
        log.info(text, volume.path, _by(own or ()), _by(target), _by(volume.shape), _by(seen.shape))
    return seen


def size_seen(own: VoxelSize, trained: Sequence[float], model: Model) -> VoxelSize:
    """The checkpoint's voxel size where it differs, the volume's own along other axes.

    Between thick sections there is nothing to interpolate: along z, networks on single slices keep what there is, and
    those that see neighbouring slices gain by one slice in between.
    """
    along_z = BETWEEN if len(set(CHANNEL_OFFSETS.get(model.channels, ()))) > 1 else 0.0
    most = (math.inf if dimensions(model.network) == 3 else along_z, math.inf, math.inf)
    z, y, x = (
        new if NEAR <= _ratio(old, new) <= limit else old
        for old, new, limit in zip(own, check_voxel_size(trained), most, strict=True)
    )
    return z, y, x


def _ratio(a: float, b: float) -> float:
    return max(a / b, b / a)


def _by(sizes: Sequence[float]) -> str:
    return " x ".join(f"{n:g}" if isinstance(n, float) else str(n) for n in sizes)


def has_other_voxels(volume: Volume, model: Model) -> bool:
    """Whether voxels are far from training's, along the axes that ``resample=auto`` would change."""
    if volume.voxel_size is None or model.voxel_size is None:
        return False
    wanted = size_seen(volume.voxel_size, model.voxel_size, model)
    return max(_ratio(a, b) for a, b in zip(volume.voxel_size, wanted, strict=True)) > FAR_VOXEL_SIZE


@dataclass(frozen=True)
class Restored:
    """From the network's tiles to the input's grid; ``mask``: from probabilities a mask is made there."""

    source: Volume
    mask: bool

    def __call__(self, tiles: Volume) -> Volume:
        """The tiles, seen with the input's voxels."""
        assert self.source.voxel_size is not None
        back = resampled(tiles, self.source.voxel_size, self.source.shape)
        metadata, dtype, scale = dict(tiles.info.metadata), tiles.dtype, 1.0
        if self.mask:
            metadata, dtype, scale = metadata | {"kind": "mask", "scale": 1}, np.dtype(np.uint8), metadata["scale"]
        return blanked(encoded_volume(back, dtype, metadata, scale), self.source.padding)
