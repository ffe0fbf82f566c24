"""What scores and columns are called, and scores as tables for a rich console."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from mitoseg.metrics.instances import ROWS

SCORES = {
    "jaccard_foreground": ("JAC of mitochondria", "TP / (TP + FP + FN)"),
    "jaccard_background": ("JAC of background", ""),
    "jaccard_mean": ("JAC, mean of both", ""),
    "dice": ("Dice", "2 TP / (2 TP + FP + FN)"),
    "precision": ("precision", "of what was found, the share that is right"),
    "recall": ("recall", "of what is there, the share that was found"),
}
"""Name of each score of voxels, and what it is."""

_PROBABILITIES = {
    "average_precision": "area under precision and recall",
    "expected_calibration_error": "expected calibration error",
    "adaptive_calibration_error": "the same, adaptive bins",
    "negative_log_likelihood": "negative log likelihood",
    "brier_score": "Brier score",
    "jaccard_foreground_oracle": "upper bound, no result: JAC at its best threshold here",
}

_UNITS = {"_nm3": ("µm³", 1e9), "_nm2": ("µm²", 1e6), "_nm": ("nm", 1.0)}


def column_label(column: str) -> tuple[str, str, float]:
    """Name and unit to show of a column of measurements, and what its values are divided by.

    >>> column_label("volume_nm3"), column_label("touches_border")
    (('volume', 'µm³', 1000000000.0), ('touches border', '', 1.0))
    """
    for ending, (unit, scale) in _UNITS.items():
        if column.endswith(ending):
            return column.removesuffix(ending).replace("_", " "), unit, scale
    return column.replace("_", " "), "", 1.0


def score_table(result: Mapping[str, Any], title: str = "") -> Group:
    """Scores, threshold and boundary bands of what `mitoseg.evaluation.evaluate` gave."""
    intervals, slabs = result.get("interval") or {}, len(result.get("slab_counts") or ())
    made = f"95 % intervals: bootstrap over {slabs} z-slabs" if slabs > 1 else "one z-slab: no intervals"
    caption = made if intervals and slabs else None
    table = Table(title=escape(title) or None, title_justify="left", show_header=False, caption=caption)
    table.add_column("score")
    table.add_column("value", justify="right")
    for key, (name, _) in SCORES.items():
        interval = [_interval(intervals[key], 4, " to ")] if key in intervals else []
        table.add_row(name, _fixed(result[key]), *interval, style="bold" if key == "jaccard_foreground" else None)
    threshold = result["threshold"]
    thresholds = threshold if isinstance(threshold, list) else [threshold]
    table.add_row("threshold", ", ".join(_fixed(t) for t in thresholds))
    table.add_row("", f"({_text(result['threshold_source'])})", style="dim")
    table.add_row("voxels", f"{result['voxels']:,}")
    table.add_row("box", _text(result["crop"]))
    parts = [table]
    if "average_precision" in result:
        chances = Table(title="the probabilities", title_justify="left", show_header=False)
        chances.add_column("score")
        chances.add_column("value", justify="right")
        for key, name in _PROBABILITIES.items():
            chances.add_row(name, _fixed(result[key]), style="dim" if "oracle" in key else None)
        parts.append(chances)
    if result.get("boundary"):
        parts.append(_boundary_table(result["boundary"], result.get("voxel_size")))
    return Group(*parts)


def _boundary_table(rows: Sequence[Mapping[str, Any]], voxel_size: object) -> Table:
    """Distances in 3D stand beside those within each slice (2D)."""
    spacing = f"in voxels of the smallest spacing; voxel size {_text(voxel_size)} nm"
    if voxel_size is None:
        spacing = "voxel size unknown: taken as cubic; voxel_size=\\[z,y,x] sets it"
    table = Table(title="without a band at the border of the truth", title_justify="left", caption=spacing)
    table.add_column("band\n", justify="right")
    for where in ("3D", "2D"):
        table.add_column(f"{where}: fg\nJAC", justify="right", style="bold")
        table.add_column("mean\nJAC", justify="right")
        table.add_column("left out of\nfg, bg (%)", justify="right", style="dim")
    by_place = {(row["distance"], row["dims"]): row for row in rows}
    for distance in dict.fromkeys(row["distance"] for row in rows):
        cells: list[str] = []
        for dims in (3, 2):
            row = by_place[distance, dims]
            cells += [_fixed(row["jaccard_foreground"]), _fixed(row["jaccard_mean"])]
            left_out = row["left_out_foreground"], row["left_out_background"]
            cells.append(", ".join(_fixed(share, 1, factor=100) for share in left_out))
        table.add_row(f"{distance:g}", *cells)
    return table


def instance_table(result: Mapping[str, Any], title: str = "instances") -> Group:
    """Objects and scores of all, whole and cut, of what `mitoseg.evaluation.instances.evaluate_instances` gave."""
    counts = Table(title=escape(title), title_justify="left")
    counts.add_column("objects")
    for name in ("true", "found", "splits", "merges", "volume error (%)"):
        counts.add_column(name, justify="right")
    scores = Table(caption=_caption(result), caption_justify="left")
    scores.add_column("objects")
    for name in ("IoU", "F1", "95 %", "precision", "recall", "AP", "PQ"):
        scores.add_column(name, justify="right", style="bold" if name == "F1" else None)
    ratios = ("precision", "recall", "average_precision", "panoptic_quality")
    for name in ROWS:
        row = result[name]
        numbers = (str(row[key]) for key in ("truth", "result", "splits", "merges"))
        counts.add_row(name, *numbers, _fixed(row["volume_error"], 1, "+", 100))
        for i, match in enumerate(row["matched"]):
            cells = [f"{match['iou']:g}", _fixed(match["f1"], 3), _interval(match["f1_interval"], 3, "-")]
            scores.add_row("" if i else name, *cells, *(_fixed(match[key], 3) for key in ratios))
    return Group(counts, scores)


def _caption(result: Mapping[str, Any]) -> str:
    small = result["small"]
    names = ("adapted_rand_error", "variation_of_information_split", "variation_of_information_merge")
    error, split, merge = (_fixed(result[name], 3) for name in names)
    lines = [
        f"splits and merges: {_fixed(result['all']['splits_and_merges_share'], 1, factor=100)} % of the true objects",
        f"adapted Rand error {error}; variation of information: split {split}, merge {merge} bits",
        f"objects below {small['voxels']:,} voxels are left out: {small['truth']} true and {small['result']} found",
    ]
    return "\n".join(lines)


def _interval(ends: Sequence[object], digits: int, between: str) -> str:
    low, high = (_fixed(end, digits) for end in ends)
    return low if low == high == "-" else f"{low}{between}{high}"


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else escape(str(value))


def _fixed(value: object, digits: int = 4, sign: str = "", factor: int = 1) -> str:
    if not isinstance(value, int | float) or math.isnan(value):
        return "-"
    return f"{factor * value:{sign}.{digits}f}"
