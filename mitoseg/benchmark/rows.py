"""Rows of the table: what was measured here, and what the abstract gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mitoseg.benchmark.records import COSTS, FINISHED, METRICS, RECORD
from mitoseg.storage import read_json

Row = dict[str, Any]
"""Cells by the names in `COLUMNS`, None where there is nothing."""

PUBLISHED = (("Lucchi et al.", 0.948), ("Neila et al.", 0.762), ("Lucchi et al.", 0.867), ("proposed", 0.964))
"""The table of the abstract, in its order and under its names."""
UNKNOWN = "EPFL CA1; class (fg, bg or mean), voxels and any boundary band are not stated"
WHICH = "which paper is meant is not stated"

COLUMNS = (
    *("method", "title", "source", "status", "jaccard_foreground", "jaccard_foreground_low"),
    *("jaccard_foreground_high", "jaccard_background", "jaccard_mean", "precision", "recall", "threshold"),
    *("band", "band_jaccard_foreground", "band_jaccard_mean", "band_left_out_foreground", "band_left_out_background"),
    *("crop", "crop_jaccard_foreground", "crop_jaccard_mean", "jaccard_published"),
    *("training_seconds", "prediction_seconds", "peak_memory_bytes", "device_memory_bytes", "protocol", "commit"),
)
"""Of ``table.csv``; scores are shares of one."""


def published_rows() -> list[Row]:
    """The abstract's figures, each with what is known of how it came about.

    No figure is put beside a method of ours, since the abstract does not say which of their papers it means.
    """
    return [
        _row(
            method=f"{name} (abstract)",
            title="as the abstract labels it",
            source="published",
            jaccard_published=value,
            protocol=f"{UNKNOWN}; {WHICH}" if name.startswith("Lucchi") else UNKNOWN,
        )
        for name, value in PUBLISHED
    ]


def method_row(name: str, folder: Path, part: str, band: float) -> Row:
    """The row of a method, from what its folder holds.

    Args:
        name: Of the method.
        folder: Its folder.
        part: Of the data, whose scores are shown.
        band: Width of the boundary band.
    """
    record, costs = read_json(folder / RECORD), read_json(folder / COSTS)
    status = record.get("status") or "not run"
    about = {"method": name, "title": record.get("title"), "source": "mitoseg", "commit": record.get("commit")}
    metrics = read_json(folder / METRICS).get(part)
    if status != FINISHED or not metrics:
        why = record.get("error")
        return _row(**about, status=status, protocol=f"no result: {why or status}")
    memory = costs.get("peak_memory") or {}
    return _row(
        **about,
        **scores(metrics, band),
        status=status,
        training_seconds=costs.get("training_seconds"),
        prediction_seconds=costs.get("prediction_seconds"),
        peak_memory_bytes=memory.get("process"),
        device_memory_bytes=memory.get("device"),
        protocol=costs.get("protocol"),
    )


def scores(metrics: Mapping[str, Any], band: float) -> Row:
    """The cells of an evaluation, as `mitoseg.evaluation.evaluate` gave it or a file holds it."""
    cells = {key: metrics.get(key) for key in ("jaccard_foreground", "jaccard_background", "jaccard_mean")}
    cells |= {key: metrics.get(key) for key in ("precision", "recall")}
    if metrics.get("kind") == "probability":
        cells["threshold"] = metrics.get("threshold")
    low_high: Sequence[float | None] = (metrics.get("interval") or {}).get("jaccard_foreground") or (None, None)
    cells["jaccard_foreground_low"], cells["jaccard_foreground_high"] = low_high
    for found in metrics.get("boundary") or ():
        if found["dims"] == 3 and found["distance"] == band:
            keys = ("jaccard_foreground", "jaccard_mean", "left_out_foreground", "left_out_background")
            cells |= {"band": band, **{f"band_{key}": found[key] for key in keys}}
    return cells


def crop_cells(metrics: Mapping[str, Any]) -> Row:
    """The cells of an evaluation of a part."""
    cells = {f"crop_{key}": metrics.get(key) for key in ("jaccard_foreground", "jaccard_mean")}
    return {"crop": metrics.get("crop"), **cells}


def _row(**cells: object) -> Row:
    unknown = set(cells) - set(COLUMNS)
    if unknown:
        raise ValueError(f"no such columns: {sorted(unknown)}")
    return {column: cells.get(column) for column in COLUMNS}
