"""From paths to the volumes that are looked at: lazy, over the same voxels, with one voxel size."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.viewers.runs import RESULT, Source, is_run, volumes_of_run
from mitoseg.volumes import Volume, VoxelSize, open_volume
from mitoseg.volumes.cropped import CroppedVolume
from mitoseg.volumes.labels import one_slice
from mitoseg.volumes.opening import stored_in
from mitoseg.volumes.units import check_voxel_size

log = logging.getLogger(__name__)

KINDS = ("image", "probability", "uncertainty", "mask", "instances", "truth")
"""What can be looked at, from the bottom up."""


@dataclass(frozen=True)
class Shown:
    """What is looked at.

    Attributes:
        volumes: By kind, in the order of `KINDS`; all of one shape.
        voxel_size: (z, y, x) in nm.
        axes: What opening them was told of their axes, by path.
    """

    volumes: Mapping[str, Volume]
    voxel_size: VoxelSize
    axes: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        return next(iter(self.volumes.values())).shape


def open_shown(
    run: str | None,
    given: Mapping[str, str | None],
    *,
    axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
) -> Shown:
    """Open the volumes of a run, or one volume, and those that are given by kind; reads no more than a few slices.

    Args:
        run: A run's folder, or a volume whose kind its metadata says; None for neither.
        given: Paths by kind, of `KINDS`; they come before the run's.
        axes: The order of the stored axes, for the files that it fits.
        voxel_size: (z, y, x) in nm, before the files'.

    Raises:
        UserError: Nothing to look at, files that cannot be opened, shapes that differ, or no voxel size.
    """
    size = None if voxel_size is None else check_voxel_size(voxel_size)
    opener = _Opener(axes)
    found = {kind: opener.open(Source(path)) for kind, path in given.items() if path}
    for name, source in ({} if run is None else _sources(run)).items():
        if name not in found and _is_there(source, name):
            volume = opener.open(source)
            found.setdefault(kind_of(volume) if name == RESULT else name, volume)
    if not found:
        raise UserError("there is nothing to look at", run, "give a run's folder, or image=, mask=, instances= VOLUME")
    opener.check_axes()
    volumes = {kind: found[kind] for kind in KINDS if kind in found}
    _check_shapes(volumes)
    return Shown(volumes, _voxel_size(volumes, size), opener.axes)


def kind_of(volume: Volume) -> str:
    """What a result is: as its metadata says, else by its type and, of bytes, by a few slices.

    Raises:
        UserError: Bytes that may be probabilities or numbers.
    """
    kind = volume.info.metadata.get("kind")
    if kind in KINDS:
        return str(kind)
    if volume.dtype.kind in "fb":
        return "probability" if volume.dtype.kind == "f" else "mask"
    if volume.dtype != np.uint8:
        return "instances"
    depth = volume.shape[0]
    values = {v for z in {0, depth // 2, depth - 1} for v in np.unique(volume.read(one_slice(volume, z))).tolist()}
    if len(values - {0}) > 1:
        raise UserError("cannot tell what the bytes of the volume are", volume.path, "give probability= or instances=")
    return "mask"


def _sources(run: str) -> dict[str, Source]:
    """The volumes of a run; or the one volume that was named in its place."""
    if is_run(run):
        return volumes_of_run(run)
    if not stored_in(run).exists():
        raise UserError("no such run or volume", run, "check the path")
    try:
        volume = open_volume(run)
    except UserError as error:
        if not Path(run).is_dir():
            raise
        remedy = "give a run's folder, which has a provenance.json, or image=VOLUME"
        raise UserError("the folder is neither a run nor a volume", run, remedy) from error
    kind = volume.info.metadata.get("kind")
    return {str(kind) if kind in KINDS else "image": Source(run)}


def _is_there(source: Source, name: str) -> bool:
    there = stored_in(source.path).exists()
    if not there:
        log.warning("the run's %s is not there any more: %s; it is left out", name, source.path)
    return there


class _Opener:
    """Opens volumes; ``axes`` is for those that it fits, the others must be clear by themselves.

    Attributes:
        axes: What opening the files was told of their axes, by path.
    """

    def __init__(self, axes: str | None) -> None:
        self._given, self._fitted = axes, axes is None
        self._misfits: list[UserError] = []
        self.axes: dict[str, str | None] = {}

    def open(self, source: Source) -> Volume:
        """The volume, or the part of it that is looked at."""
        axes = self._given or source.axes
        try:
            volume = open_volume(source.path, axes=axes, voxel_size=source.voxel_size)
            self._fitted = True
            self.axes[volume.path] = axes
        except UserError as error:
            if axes is None:
                raise
            volume = open_volume(source.path, voxel_size=source.voxel_size)
            self._misfits.append(error)
        if source.box is None or Box.parse(source.box, volume.shape) == volume.box:
            return volume
        return CroppedVolume(volume, Box.parse(source.box, volume.shape))

    def check_axes(self) -> None:
        """Refuse axes that fit none of the volumes.

        Raises:
            UserError: Of the first of them.
        """
        if not self._fitted:
            raise self._misfits[0]


def _check_shapes(volumes: Mapping[str, Volume]) -> None:
    shapes = {kind: volume.shape for kind, volume in volumes.items()}
    if len(set(shapes.values())) > 1:
        raise UserError("the volumes differ in shape (z, y, x)", shapes, "give volumes over the same voxels")


def _voxel_size(volumes: Mapping[str, Volume], given: VoxelSize | None) -> VoxelSize:
    """The size that is given, else the first that a file knows."""
    known = {kind: volume.voxel_size for kind, volume in volumes.items() if volume.voxel_size is not None}
    size = given or next(iter(known.values()), None)
    if size is None:
        paths = [volume.path for volume in volumes.values()]
        raise UserError("no file has a voxel size", paths[0], "give voxel_size=[z,y,x] in nm")
    others = {kind: other for kind, other in known.items() if not np.allclose(other, size, rtol=1e-3)}
    if others:
        log.warning("voxels are shown as %s nm, but files say otherwise: %s", size, others)
    return size
