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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mitoseg.errors import UserError
from mitoseg.storage import read_json

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
    """

    path: str
    box: str | None = None


def is_run(folder: Path | str) -> bool:
    """Whether a folder holds the record that every command leaves."""
    return (Path(folder) / RECORD).is_file()


def volumes_of_run(folder: Path | str) -> dict[str, Source]:
    """What a run of predict, evaluate, measure or train read and wrote.

    Args:
        folder: With ``provenance.json``.

    Returns:
        By name: ``image``, ``truth``, ``result``, ``probability``, ``uncertainty``, ``instances``, those that it names.
        Relative paths are found from where the run was started, else from here. The files may be gone.

    Raises:
        UserError: The folder is no run, or one without volumes, or one of several volumes.
    """
    folder = Path(folder)
    record = read_json(folder / RECORD)
    if isinstance(record.get("data"), dict):
        named = _of_training(folder, record["data"])
    else:
        named = {name: Source(path) for name, path in _named(record).items()}
    if not named:
        remedy = "give a run of predict, evaluate, measure or train, or the volumes themselves: image=VOLUME"
        raise UserError("the folder names no volumes", str(folder), remedy)
    started = _started_in(folder)
    return {name: Source(_found(source.path, started), source.box) for name, source in named.items()}


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
        if isinstance(source, list) or (output and not Path(output).suffix):
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


def _pair(files: list[Mapping[str, str]], name: str, split: str) -> tuple[str | None, str | None]:
    """Paths of the image of that name, and of its labels: of the test's files, if they have one, else of training's."""
    for key in (split, "train"):
        images, labels = ([f["path"] for f in files if f["role"] == f"{key}.{kind}"] for kind in ("image", "label"))
        for place, path in enumerate(images):
            if Path(path).name == name or path.endswith(name):
                return path, labels[place] if place < len(labels) else None
    return None, None


def _started_in(folder: Path) -> Path:
    """The working directory of the run, as Hydra has recorded it; the current one where it has not."""
    try:
        found = yaml.safe_load((folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))
        return Path(found["hydra"]["runtime"]["cwd"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return Path.cwd()


def _found(path: str, started: Path) -> str:
    """A recorded path from here: from where the run was started, where that folder is still there."""
    if Path(path).is_absolute() or not started.is_dir():
        return path
    return str(started / path)
