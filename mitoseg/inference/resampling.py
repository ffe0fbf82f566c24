"""``resample=``: the network sees voxels of the size that it was trained on, the output has the input's grid."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mitoseg.errors import UserError
from mitoseg.inference.protocol import dimensions
from mitoseg.networks.checkpoint import Model
from mitoseg.volumes import CHANNEL_OFFSETS, Volume, VoxelSize
from mitoseg.volumes.padding import blanked
from mitoseg.volumes.resampling import resampled
from mitoseg.volumes.thresholded import EncodedVolume
from mitoseg.volumes.units import check_voxel_size

log = logging.getLogger(__name__)
NEAR = 1.1
"""Voxel sizes that differ by less are taken for equal: resampling would cost sharpness and mend nothing."""
BETWEEN = 2.0
"""The largest ratio along z for networks on slices that see their neighbours."""
FAR = 1.25
"""Voxel sizes that differ by more are worth a warning where the user wants nothing resampled."""


def resample_input(choice: object, volume: Volume, model: Model) -> Volume:
    """The volume as the network is to see it.

    Args:
        choice: ``none``; ``auto``: the checkpoint's voxel size along y and x, and along z for networks on volumes, or
            that see neighbouring slices, up to twice, where the two differ by `NEAR` or more; or (z, y, x) in nm.
        volume: The input.
        model: What predicts.

    Raises:
        UserError: No such choice, a voxel size that it needs is not known, or sizes differ too much.
    """
    if choice == "none":
        _warn(volume, model)
        return volume
    if choice == "auto":
        if volume.voxel_size is None or model.voxel_size is None:
            _tell_unknown(volume, model)
            return volume
        target = _wanted(volume.voxel_size, model.voxel_size, model)
    elif isinstance(choice, str) or not isinstance(choice, Sequence):
        raise UserError("no such way to resample", choice, "choose none, auto, or [z,y,x] in nm")
    else:
        target = check_voxel_size(choice)
    seen = resampled(volume, target)
    if seen is not volume:
        assert volume.voxel_size is not None
        log.info(
            "%s: resampled from voxels of %s nm to %s nm, %s voxels to %s; the result comes back to its grid",
            volume.path,
            _by(volume.voxel_size),
            _by(target),
            _by(volume.shape),
            _by(seen.shape),
        )
    return seen


def _wanted(own: VoxelSize, trained: Sequence[float], model: Model) -> VoxelSize:
    """The checkpoint's voxel size where it differs, the volume's own along other axes."""
    most = (_most_along_z(model), math.inf, math.inf)
    z, y, x = (
        new if NEAR <= _ratio(old, new) <= limit else old
        for old, new, limit in zip(own, check_voxel_size(trained), most, strict=True)
    )
    return z, y, x


def _most_along_z(model: Model) -> float:
    """The largest ratio that is mended along z: between thick sections there is nothing to interpolate.

    A network on single slices does not look there; one that sees neighbouring slices gains by one slice in between.
    """
    if dimensions(model.network) == 3:
        return math.inf
    return BETWEEN if len(set(CHANNEL_OFFSETS.get(model.channels, ()))) > 1 else 0.0


def _ratio(a: float, b: float) -> float:
    return max(a / b, b / a)


def _by(sizes: Sequence[float]) -> str:
    return " x ".join(f"{n:g}" if isinstance(n, float) else str(n) for n in sizes)


def _warn(volume: Volume, model: Model) -> None:
    """Tell of voxels that are far from training's."""
    if has_other_voxels(volume, model):
        text = "%s has voxels of %s nm, the network was trained on %s nm: give resample=auto to resample on the way"
        log.warning(text, volume.path, _by(volume.voxel_size or ()), _by(model.voxel_size or ()))


def _tell_unknown(volume: Volume, model: Model) -> None:
    """Tell that nothing is resampled, since it is not known from what or to what."""
    if volume.voxel_size is not None:
        text = "the checkpoint does not know its voxel size, so %s is not resampled: give resample=[z,y,x] in nm"
        log.warning(text, volume.path)
    elif model.voxel_size is None:
        log.warning("%s and the checkpoint have no voxel size, so nothing is resampled", volume.path)
    else:
        text = (
            "%s has no voxel size: taking the checkpoint's, %s nm, so it is not resampled; or give voxel_size=[z,y,x]"
        )
        log.warning(text, volume.path, _by(model.voxel_size))


def has_other_voxels(volume: Volume, model: Model) -> bool:
    """Whether voxels are far from training's, along the axes that ``resample=auto`` would change."""
    if volume.voxel_size is None or model.voxel_size is None:
        return False
    wanted = _wanted(volume.voxel_size, model.voxel_size, model)
    return max(_ratio(a, b) for a, b in zip(volume.voxel_size, wanted, strict=True)) > FAR


@dataclass(frozen=True)
class Restored:
    """From the network's tiles to the input's grid, for `mitoseg.volumes.staging.StagedVolume`.

    Attributes:
        source: The input.
        mask: Whether the tiles are probabilities of which a mask is to be made on the input's grid.
    """

    source: Volume
    mask: bool

    def __call__(self, tiles: Volume) -> Volume:
        """The tiles, seen with the input's voxels."""
        assert self.source.voxel_size is not None
        back = resampled(tiles, self.source.voxel_size, self.source.shape)
        metadata, dtype, scale = dict(tiles.info.metadata), tiles.dtype, 1.0
        if self.mask:
            metadata, dtype, scale = metadata | {"kind": "mask", "scale": 1}, np.dtype(np.uint8), metadata["scale"]
        return blanked(EncodedVolume(back, dtype, metadata, scale), self.source.padding)


def restoring(seen: Volume, source: Volume, save: str) -> Restored | None:
    """What brings tiles back to the input's grid; None where the network sees the input's own voxels."""
    return None if seen is source else Restored(source, save == "mask")
