"""Scores as a table to read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.markup import escape
from rich.table import Table

_SCORES = (
    ("JAC of mitochondria", "jaccard_foreground"),
    ("JAC of background", "jaccard_background"),
    ("JAC, mean of both", "jaccard_mean"),
    ("Dice", "dice"),
    ("precision", "precision"),
    ("recall", "recall"),
)


_PROBABILITIES = (
    ("area under precision and recall", "average_precision"),
    ("expected calibration error", "expected_calibration_error"),
    ("the same, adaptive bins", "adaptive_calibration_error"),
    ("negative log likelihood", "negative_log_likelihood"),
    ("Brier score", "brier_score"),
    ("upper bound, no result: JAC at its best threshold here", "jaccard_foreground_oracle"),
)


def score_table(result: Mapping[str, object], title: str = "") -> Group:
    """Scores, threshold and boundary bands for a rich console.

    Args:
        result: What `mitoseg.evaluation.evaluate` gave.
        title: Put over the table.
    """
    table = Table(title=escape(title) or None, title_justify="left", show_header=False, caption=_how_made(result))
    table.add_column("score")
    table.add_column("value", justify="right")
    intervals = result.get("interval") or {}
    for name, key in _SCORES:
        cells = [name, _number(result[key])]
        if isinstance(intervals, dict) and key in intervals:
            cells.append(_interval(intervals[key]))
        table.add_row(*cells, style="bold" if key == "jaccard_foreground" else None)
    threshold = result["threshold"]
    thresholds = threshold if isinstance(threshold, list) else [threshold]
    table.add_row("threshold", ", ".join(_number(t) for t in thresholds))
    table.add_row("", f"({_text(result['threshold_source'])})", style="dim")
    table.add_row("voxels", f"{result['voxels']:,}")
    table.add_row("box", _text(result["crop"]))
    parts = [table]
    if "average_precision" in result:
        parts.append(probability_table(result))
    rows = result.get("boundary")
    if isinstance(rows, list) and rows:
        parts.append(boundary_table(rows, result.get("voxel_size")))
    return Group(*parts)


def probability_table(result: Mapping[str, object]) -> Table:
    """Scores of the probabilities, which need no threshold."""
    table = Table(title="the probabilities", title_justify="left", show_header=False)
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, key in _PROBABILITIES:
        table.add_row(name, _number(result[key]), style="dim" if "oracle" in key else None)
    return table


def boundary_table(rows: Sequence[Mapping[str, object]], voxel_size: object = None) -> Table:
    """Scores without the voxels near the border of the truth, by width of the band.

    Columns for distances in 3D stand beside those for distances within each slice (2D).
    """
    table = Table(
        title="without a band at the border of the truth", title_justify="left", caption=_spacing(voxel_size)
    )
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
            cells += [_number(row["jaccard_foreground"]), _number(row["jaccard_mean"])]
            cells.append(f"{_percent(row['left_out_foreground'])}, {_percent(row['left_out_background'])}")
        table.add_row(f"{distance:g}", *cells)
    return table


def _spacing(voxel_size: object) -> str:
    if voxel_size is None:
        return "voxel size unknown: taken as cubic; voxel_size=\\[z,y,x] sets it"
    return f"in voxels of the smallest spacing; voxel size {_text(voxel_size)} nm"


def _how_made(result: Mapping[str, object]) -> str | None:
    """What the intervals are; None without."""
    slabs = result.get("slab_counts")
    if not result.get("interval") or not isinstance(slabs, list):
        return None
    return f"95 % intervals: bootstrap over {len(slabs)} z-slabs" if len(slabs) > 1 else "one z-slab: no intervals"


def _interval(ends: Sequence[object]) -> str:
    low, high = (_number(end) for end in ends)
    return low if low == high == _number(None) else f"{low} to {high}"


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else escape(str(value))


def _number(value: object) -> str:
    if not isinstance(value, int | float) or math.isnan(value):
        return "-"
    return f"{value:.4f}"


def _percent(value: object) -> str:
    if not isinstance(value, int | float) or math.isnan(value):
        return "-"
    return f"{100 * value:.1f}"
