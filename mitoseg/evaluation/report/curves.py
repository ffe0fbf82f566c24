"""Curves of the scores: precision over recall, the boundary band, and what probabilities are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mitoseg.evaluation.report.charts import Axis, Chart, Series
from mitoseg.evaluation.report.markup import Html, element, number

Scores = Mapping[str, Any]

_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)


def curve_section(scores: Scores) -> Html | None:
    """The curves that the scores hold; None without any."""
    figures = [_precision_recall(scores), _boundary(scores), _reliability(scores)]
    found = [figure for figure in figures if figure is not None]
    return element("div", *found, class_="charts") if found else None


def _precision_recall(scores: Scores) -> Html | None:
    points = scores.get("precision_recall") or {}
    if not points.get("recall"):
        return None
    area, used = number(scores.get("average_precision"), 3), number(scores.get("jaccard_foreground"), 3)
    chart = Chart(Axis("recall", 0, 1), Axis("precision", 0, 1.02), f"Precision over recall; area {area}")
    for level in _LEVELS:
        recall = np.linspace(level, 1, 60)
        chart.draw(Series("", recall, 1 / (1 / level + 1 - 1 / recall), "faint"))
    chart.draw(Series(f"area {area}", _floats(points["recall"]), _floats(points["precision"]), "c1"))
    at = (_floats([scores.get("recall")]), _floats([scores.get("precision")]))
    chart.draw(Series(f"the threshold used: JAC {used}", *at, "c2", line=False))
    return _figure(chart, "Precision over recall", "Thin lines: equal JAC, 0.5 to 0.9.")


def _boundary(scores: Scores) -> Html | None:
    rows: Sequence[Mapping[str, Any]] = scores.get("boundary") or []
    if not rows:
        return None
    lines, lowest, widest = [], 1.0, 0.0
    for key, name, style in (("jaccard_foreground", "mitochondria", "c1"), ("jaccard_mean", "both classes", "c2")):
        for dims, where, more in ((3, "3D", ""), (2, "in plane", " dashed")):
            here = [row for row in rows if row["dims"] == dims]
            widths = [0.0, *(float(row["distance"]) for row in here)]
            values = _floats([scores.get(key), *(row[key] for row in here)])
            lines.append(Series(f"{name}, {where}", widths, values, style + more, points=not more))
            finite = [value for value in values if np.isfinite(value)]
            lowest, widest = min([lowest, *finite]), max([widest, *widths])
    floor = np.floor(lowest * 20 - 0.2) / 20
    chart = Chart(
        Axis("voxels left out on both sides of the border", 0, widest),
        Axis("Jaccard index", max(float(floor), 0), 1),
        "Jaccard index against the width of the boundary band that is left out",
    )
    for line in lines:
        chart.draw(line)
    return _figure(chart, "Without a band at the border", "Annotators differ by a voxel or two at a membrane.")


def _reliability(scores: Scores) -> Html | None:
    bins = scores.get("reliability") or {}
    if not bins.get("voxels"):
        return None
    error = number(scores.get("expected_calibration_error"), 2)
    chart = Chart(
        Axis("mean probability", 0, 1), Axis("share of mitochondria", 0, 1), f"Reliability; calibration error {error}"
    )
    chart.draw(Series("calibrated", [0, 1], [0, 1], "faint"))
    line = Series(f"error {error}", _floats(bins["confidence"]), _floats(bins["share"]), "c1", points=True)
    chart.draw(line)
    return _figure(chart, "Reliability", "Below the line the map promises too much.")


def _figure(chart: Chart, name: str, said: str) -> Html:
    return element("figure", chart.svg(), element("figcaption", element("b", name), " ", said))


def _floats(values: Sequence[Any]) -> list[float]:
    """Numbers; NaN for null."""
    return [float(v) if isinstance(v, int | float) else float("nan") for v in values]
