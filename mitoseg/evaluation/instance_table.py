"""Scores of instances as a table to read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from mitoseg.metrics.instances import ROWS

_RATIOS = ("precision", "recall", "average_precision", "panoptic_quality")


def instance_table(result: Mapping[str, Any], title: str = "instances") -> Group:
    """Objects, splits and merges; and the scores at each threshold: of all objects, the whole ones, and those cut.

    Args:
        result: What `mitoseg.evaluation.instances.evaluate_instances` gave.
        title: Put over the tables.
    """
    counts = Table(title=escape(title), title_justify="left")
    counts.add_column("objects")
    for name in ("true", "found", "splits", "merges", "volume error (%)"):
        counts.add_column(name, justify="right")
    for name in ROWS:
        row = result[name]
        numbers = (str(row[key]) for key in ("truth", "result", "splits", "merges"))
        counts.add_row(name, *numbers, _percent(row["volume_error"]))
    scores = Table(caption=_caption(result), caption_justify="left")
    scores.add_column("objects")
    for name in ("IoU", "F1", "95 %", "precision", "recall", "AP", "PQ"):
        scores.add_column(name, justify="right", style="bold" if name == "F1" else None)
    for name in ROWS:
        for i, row in enumerate(result[name]["matched"]):
            low, high = (_number(end) for end in row["f1_interval"])
            cells = [name if i == 0 else "", f"{row['iou']:g}", _number(row["f1"])]
            cells += [low if low == high == "-" else f"{low}-{high}", *(_number(row[key]) for key in _RATIOS)]
            scores.add_row(*cells)
    return Group(counts, scores)


def _caption(result: Mapping[str, Any]) -> str:
    small = result["small"]
    left_out = f"{small['truth']} true and {small['result']} found"
    names = ("adapted_rand_error", "variation_of_information_split", "variation_of_information_merge")
    error, split, merge = (_number(result[name]) for name in names)
    lines = [
        f"splits and merges: {_percent(result['all']['splits_and_merges_share']).lstrip('+')} % of the true objects",
        f"adapted Rand error {error}; variation of information: split {split}, merge {merge} bits",
        f"objects below {small['voxels']:,} voxels are left out: {left_out}",
    ]
    return "\n".join(lines)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"
