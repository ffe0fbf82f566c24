"""The volumes of a run, told from the records in its folder.

command     what it looks at
predict     input                  -> image;  output -> result
evaluate    image, prediction      -> result, truth
measure     image, input           -> result, probability, uncertainty, the instances it saved
train       predictions/test_0.tif -> result; image and labels of the same box, from the record of the data

A result is a probability, an uncertainty, a mask or instances: its own metadata says which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mitoseg.errors import UserError
from mitoseg.storage import read_json
from mitoseg.volumes.opening import stored_in

RECORD = "provenance.json"
RESULT = "result"
_REGION = re.compile(r"(.+) (\[[\d:,]+\])")
_SPLITS = ("test", "validation")
_MANY = "name one of them: image=VOLUME and probability=, mask= or instances=VOLUME"


@dataclass(frozen=True)
class Source:
    """Where a volume is.

    Attributes:
        path: As `mitoseg.volumes.open_volume` takes it.
        box: The part of it that is looked at, such as ``[0:82,0:768,0:1024]``; None for all.
        axes: What the run was told of its axes.
        voxel_size: What the run was told of it, (z, y, x) in nm.
    """

    path: str
    box: str | None = None
    axes: str | None = None
    voxel_size: Sequence[float] | None = None


def is_run(folder: Path | str) -> bool:
    """Whether a folder holds the record that every command leaves."""
    return (Path(folder) / RECORD).is_file()


def volumes_of_run(folder: Path | str) -> dict[str, Source]:
    """What a run of predict, evaluate, measure or train read and wrote.

    Args:
        folder: With ``provenance.json``.

    Returns:
        By name, those that it names of ``image``, ``truth``, ``result``, ``probability``, ``uncertainty`` and
        ``instances``. Relative paths are found from where the run was started, else from here. The files may be gone.

    Raises:
        UserError: The folder is no run, or one without volumes, or one of several volumes.
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
    started, told = _started_in(folder), _told(folder, record)
    return {
        name: replace(source, path=_found(source.path, started), **(told if name in read else {}))
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
    for split in _SPLITS:
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


def _started_in(folder: Path) -> Path:
    """The working directory of the run, as Hydra has recorded it; the current one where it has not."""
    try:
        return Path(_yaml(folder / ".hydra" / "hydra.yaml")["hydra"]["runtime"]["cwd"])
    except (KeyError, TypeError):
        return Path.cwd()


def _told(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was told of the files that it read: ``axes`` and ``voxel_size``."""
    found = _yaml(folder / ".hydra" / "config.yaml")
    found = (found.get("data") or {}) if "data" in record else found
    return {key: found.get(key) for key in ("axes", "voxel_size")}


def _yaml(path: Path) -> dict[str, Any]:
    """A mapping from a file that Hydra wrote; empty where there is none."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _found(path: str, started: Path) -> str:
    """A recorded path from here: from where the run was started, where that folder is still there."""
    if Path(path).is_absolute() or not started.is_dir():
        return path
    return str(started / path)
