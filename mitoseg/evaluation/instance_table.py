"""Scores of instances as a table to read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from mitoseg.evaluation.instances import flat_rows

_RATIOS = ("precision", "recall", "average_precision", "panoptic_quality")


def instance_table(result: Mapping[str, Any], title: str = "instances") -> Table:
    """One line for all objects, for those that are whole, and for those that the border cuts, at each threshold.

    Args:
        result: What `mitoseg.evaluation.instances.evaluate_instances` gave.
        title: Put over the table.
    """
    table = Table(title=escape(title), title_justify="left", caption=_caption(result), caption_justify="left")
    table.add_column("objects\n")
    for name in (
        "IoU\nover",
        "true\n",
        "found\n",
        "F1\n",
        "its 95 %\ninterval",
        "preci-\nsion",
        "recall\n",
        "AP\n",
        "PQ\n",
    ):
        table.add_column(name, justify="right", style="bold" if name == "F1\n" else None)
    for name in ("splits\n", "merges\n", "volume\nerror (%)"):
        table.add_column(name, justify="right")
    for row in flat_rows(result):
        first = row["iou"] == result["all"]["matched"][0]["iou"]
        low, high = (_number(end) for end in row["f1_interval"])
        cells = [row["objects"] if first else "", f"{row['iou']:g}", str(row["truth"]), str(row["result"])]
        cells += [
            _number(row["f1"]),
            low if low == high == "-" else f"{low}-{high}",
            *(_number(row[k]) for k in _RATIOS),
        ]
        if first:
            cells += [str(row["splits"]), str(row["merges"]), _percent(row["volume_error"])]
        table.add_row(*cells)
    return table


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
