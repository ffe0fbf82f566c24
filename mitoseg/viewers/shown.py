"""From paths, or the records in a run's folder, to lazy volumes over the same voxels with one voxel size.

command     what it looks at
predict     input                  -> image;  output -> result
evaluate    image, prediction      -> result, truth
measure     image, input           -> result, probability, uncertainty, the instances it saved
train       predictions/test_0.tif -> result; image and labels of the same box, from the record of the data

A result is a probability, an uncertainty, a mask or instances: its own metadata says which.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.storage import read_json
from mitoseg.volumes import Volume, VoxelSize, open_volume
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.base import CroppedVolume
from mitoseg.volumes.labels import one_slice
from mitoseg.volumes.opening import stored_in
from mitoseg.volumes.predicted import kind_of_type

log = logging.getLogger(__name__)

KINDS = ("image", "probability", "uncertainty", "mask", "instances", "truth")
"""What can be looked at, from the bottom up."""
RECORD = "provenance.json"
RESULT = "result"
_REGION = re.compile(r"(.+) (\[[\d:,]+\])")
_MANY = "name one of them: image=VOLUME and probability=, mask= or instances=VOLUME"


@dataclass(frozen=True)
class Shown:
    """What is looked at."""

    volumes: Mapping[str, Volume]  # by kind, in the order of `KINDS`; all of one shape
    voxel_size: VoxelSize  # (z, y, x) in nm
    axes: Mapping[str, str | None] = field(default_factory=dict)  # the axes that each was opened with, by path

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

    ``run`` is a run's folder, or a volume whose kind its metadata says, or None; paths that are given by kind come
    before the run's, the voxel size (z, y, x) in nm before the files', and ``axes`` are for the files that they fit.
    """
    size = None if voxel_size is None else check_voxel_size(voxel_size)
    opened: dict[str, str | None] = {}
    misfits: list[UserError] = []

    def open_source(source: Source) -> Volume:
        wanted = axes or source.axes
        try:
            volume = open_volume(source.path, axes=wanted, voxel_size=source.voxel_size)
            opened[volume.path] = wanted
        except UserError as error:
            if wanted is None:
                raise
            volume = open_volume(source.path, voxel_size=source.voxel_size)  # it must be clear by itself
            misfits.append(error)
        box = volume.box if source.box is None else Box.parse(source.box, volume.shape)
        return volume if box == volume.box else CroppedVolume(volume, box)

    found = {kind: open_source(Source(path)) for kind, path in given.items() if path}
    for name, source in ({} if run is None else _sources(run)).items():
        if name in found:
            continue
        if not stored_in(source.path).exists():
            log.warning("the run's %s no longer exists: %s; it is left out", name, source.path)
            continue
        volume = open_source(source)
        found.setdefault(kind_of(volume) if name == RESULT else name, volume)
    if not found:
        raise UserError("there is nothing to show", run, "give a run's folder, or image=, mask=, instances= VOLUME")
    if axes and not opened:
        raise misfits[0]
    volumes = {kind: found[kind] for kind in KINDS if kind in found}
    shapes = {kind: volume.shape for kind, volume in volumes.items()}
    if len(set(shapes.values())) > 1:
        raise UserError("the volumes differ in shape (z, y, x)", shapes, "give volumes over the same voxels")
    return Shown(volumes, _voxel_size(volumes, size), opened)


def kind_of(volume: Volume) -> str:
    """What a result is: as its metadata says, else by its type and, of bytes, by a few slices."""
    kind = volume.info.metadata.get("kind")
    if kind in KINDS:
        return str(kind)
    if (by_type := kind_of_type(volume.dtype)) is not None:
        return by_type
    depth = volume.shape[0]
    values = {v for z in {0, depth // 2, depth - 1} for v in np.unique(volume.read(one_slice(volume, z))).tolist()}
    if len(values - {0}) > 1:
        raise UserError("bytes may be probabilities or instances", volume.path, "give probability= or instances=")
    return "mask"


def _sources(run: str) -> dict[str, Source]:
    """The volumes of a run; or the one volume that was named in its place."""
    if (Path(run) / RECORD).is_file():
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


def _voxel_size(volumes: Mapping[str, Volume], given: VoxelSize | None) -> VoxelSize:
    """The size that is given, else the first that a file knows."""
    known = {kind: volume.voxel_size for kind, volume in volumes.items() if volume.voxel_size is not None}
    size = given or next(iter(known.values()), None)
    if size is None:
        paths = [volume.path for volume in volumes.values()]
        raise UserError("no file has a voxel size", paths[0], "give voxel_size=[z,y,x] in nm")
    others = {kind: other for kind, other in known.items() if not np.allclose(other, size, rtol=1e-3)}
    if others:
        log.warning("voxels are shown as %s nm, but files state other sizes: %s", size, others)
    return size


@dataclass(frozen=True)
class Source:
    """Where a volume is, with the axes and voxel size ((z, y, x) in nm) that a run was given.

    Only the box, such as ``[0:82,0:768,0:1024]``, is looked at.
    """

    path: str
    box: str | None = None
    axes: str | None = None
    voxel_size: Sequence[float] | None = None


def volumes_of_run(folder: Path | str) -> dict[str, Source]:
    """What a run of predict, evaluate, measure or train read and wrote.

    By name, those that its record names of ``image``, ``truth``, ``result``, ``probability``, ``uncertainty`` and
    ``instances``. Relative paths are found from where the run was started, else from here. The files may be gone.
    """
    folder = Path(folder)
    record = read_json(folder / RECORD)
    if isinstance(record.get("data"), dict):
        named, read = _of_training(folder, record["data"]), {"image", "truth"}
    else:
        named = {name: Source(path) for name, path in _named(record).items()}
        read = {"image"} if "output" in record and "options" not in record else set(named)
    if not named:
        remedy = "give a run of predict, evaluate, measure or train, or the volumes themselves: image=VOLUME"
        raise UserError("the folder names no volumes", str(folder), remedy)
    config = _yaml(folder / ".hydra" / "config.yaml")
    config = (config.get("data") or {}) if "data" in record else config
    options = {key: config.get(key) for key in ("axes", "voxel_size")}
    try:  # the working directory of the run, as Hydra has recorded it
        started = Path(_yaml(folder / ".hydra" / "hydra.yaml")["hydra"]["runtime"]["cwd"])
    except (KeyError, TypeError):
        started = Path.cwd()
    start = started if started.is_dir() else Path()
    return {
        name: replace(source, path=str(start / source.path), **(options if name in read else {}))
        for name, source in named.items()
    }


def _named(record: Mapping[str, Any]) -> dict[str, str]:
    """The volumes that a record names by the keys of its command."""
    options = record.get("options") or {}
    if "prediction" in record:  # evaluate
        found = {RESULT: record["prediction"], "truth": record.get("truth"), "image": record.get("image")}
    elif "options" in record:  # measure
        found = {RESULT: record.get("input"), "instances": options.get("save_instances")}
        found |= {name: record.get(name) for name in ("image", "probability", "uncertainty")}
    else:  # predict
        found = {"image": record.get("input"), RESULT: record.get("output")}
        source, output = found["image"], found[RESULT]
        if isinstance(source, list) or (output and not stored_in(output).suffix):
            raise UserError("the run has several volumes", source, _MANY)
    return {name: path for name, path in found.items() if isinstance(path, str)}


def _of_training(folder: Path, data: Mapping[str, Any]) -> dict[str, Source]:
    """The first prediction of a training run, with the voxels that it was made of."""
    regions = data.get("regions") or {}
    for split in ("test", "validation"):
        prediction = folder / "predictions" / f"{split}_0.tif"
        if not prediction.is_file():
            continue
        found = {RESULT: Source(str(prediction.absolute()))}
        match = _REGION.fullmatch(next(iter(regions.get(split) or ()), ""))
        image, label = _pair(data.get("files") or (), match[1], split) if match else (None, None)
        if image and match:
            found["image"] = Source(image, match[2])
        if label and match:
            found["truth"] = Source(label, match[2])
        return found
    return {}


def _pair(files: Sequence[Mapping[str, str]], name: str, split: str) -> tuple[str | None, str | None]:
    """Paths of the image of that name, and of its labels; the test's files come before those of training."""
    for key in (split, "train"):
        images, labels = ([f["path"] for f in files if f["role"] == f"{key}.{kind}"] for kind in ("image", "label"))
        for place, path in enumerate(images):
            if Path(path).name == name or path.endswith(name):
                return path, labels[place] if place < len(labels) else None
    return None, None


def _yaml(path: Path) -> dict[str, Any]:
    """A mapping from a file that Hydra wrote; empty where there is none."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
