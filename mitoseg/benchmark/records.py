"""How a method stands in a benchmark's folder: ``record.json``, and whether it may be run with the options given now.

outputs/benchmark/<date>_<time>/
    table.md, table.csv, table.html, methods.png, provenance.json
    forest/     record.json, metrics.json, costs.json, model/, predictions/
    unet25d/    record.json, metrics.json, costs.json, train/ (a run of training), predictions/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mitoseg.errors import UserError
from mitoseg.storage import changes, read_json, remove

RECORD, METRICS, COSTS, MODEL, TRAIN = "record.json", "metrics.json", "costs.json", "model", "train"
LAST = Path(TRAIN, "checkpoints", "last.ckpt")
FINISHED = "finished"


def prediction_path(folder: Path, part: str, index: int) -> Path:
    """Where the prediction of a region lies in a method's folder."""
    return folder / "predictions" / f"{part}_{index}.tif"


def is_finished(folder: Path) -> bool:
    """Whether a method's folder holds its scores."""
    return read_json(folder / RECORD).get("status") == FINISHED and (folder / METRICS).is_file()


def check_options(name: str, folder: Path, options: Mapping[str, Any], *, overwrite: bool) -> str | None:
    """Compare what a method's folder was made with to the options given now.

    Args:
        name: Of the method.
        folder: Its folder, which need not be there.
        options: Given now.
        overwrite: Whether a result of other options may go.

    Returns:
        How they differ, in words, if the folder is to be made anew; None if it can stay.

    Raises:
        UserError: The folder holds something made with other options, and may not be overwritten.
    """
    if not (folder / RECORD).is_file():
        return None
    before = read_json(folder / RECORD).get("options") or {}
    change = changes(before, known_before(before, options))
    if not change:
        return None
    holds = is_finished(folder) or (folder / MODEL).is_dir() or (folder / LAST).is_file()
    if holds and not overwrite:
        remedy = "give the options as they were, overwrite=true to run it again, or start a new benchmark"
        raise UserError(f"the method {name} is there with other options ({change})", str(folder), remedy)
    return change


def known_before(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The options of now without the checksums that a record of an earlier version does not tell."""
    return {key: value for key, value in now.items() if key in before or key not in ("files", "checkpoint_sha256")}


def clear(folder: Path) -> None:
    """Remove what a method of other options has left."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != ".lock":
            remove(path)
