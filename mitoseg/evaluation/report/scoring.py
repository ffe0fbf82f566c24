"""The scores as tables: of voxels, and of instances where they were scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mitoseg.evaluation.report.markup import Html, element, join, number
from mitoseg.metrics.instances import ROWS

SCORES = (
    ("jaccard_foreground", "JAC of mitochondria", "TP / (TP + FP + FN)"),
    ("dice", "Dice", "2 TP / (2 TP + FP + FN)"),
    ("precision", "precision", "of what was found, the share that is right"),
    ("recall", "recall", "of what is there, the share that was found"),
    ("jaccard_background", "JAC of background", ""),
    ("jaccard_mean", "JAC, mean of both", ""),
)
"""Key, name, and what it is."""
_OBJECTS = {"all": "all", "whole": "whole", "cut": "cut by the border"}
_COLUMNS = ("objects", "IoU over", "true", "found", "F1", "95 % interval", "precision", "recall", "splits", "merges")


def score_section(scores: Mapping[str, Any]) -> Html | None:
    """All pooled scores with their intervals; None without."""
    intervals = scores.get("interval") or {}
    rows = []
    for key, name, said in SCORES:
        if key in scores:
            cells = [element("th", name, scope="row"), element("td", number(scores[key]))]
            cells += [element("td", interval(intervals.get(key))), element("td", said, class_="text soft")]
            rows.append(element("tr", *cells))
    if not rows:
        return None
    heads = [element("th", text, scope="col") for text in ("score", "value", "95 % interval", "")]
    note = f"threshold {shown(scores.get('threshold'))} ({shown(scores.get('threshold_source'))}); "
    note += f"{number(scores.get('voxels'))} voxels; box {shown(scores.get('crop'))}. "
    slabs = scores.get("slab_counts") or []
    note += f"Intervals: bootstrap over {len(slabs)} runs of slices." if len(slabs) > 1 else ""
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="plain")
    parts = [element("div", table, class_="scroll fit"), element("p", note, class_="soft")]
    return join(*parts, *_instances(scores.get("instances")))


def _instances(scores: object) -> list[Html]:
    """A table of the scores of instances; nothing without."""
    if not isinstance(scores, Mapping) or "all" not in scores:
        return []
    rows = [
        _instance_row(name, {**scores[name], **matched})
        for name in ROWS
        if name in scores
        for matched in scores[name]["matched"]
    ]
    heads = [element("th", text, scope="col") for text in _COLUMNS]
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="plain")
    small = scores.get("small") or {}
    note = "A true and a found mitochondrion match where their intersection over union is above the threshold. "
    if small:
        note += f"Those below {number(small.get('voxels'))} voxels are left out: "
        note += f"{number(small.get('truth'))} true, {number(small.get('result'))} found."
    title = element("h3", "Instances")
    return [title, element("div", table, class_="scroll fit"), element("p", note, class_="soft")]


def _instance_row(name: str, row: Mapping[str, Any]) -> Html:
    cells = [element("th", _OBJECTS.get(name, name), scope="row")]
    texts = [f"{row['iou']:g}", number(row["truth"]), number(row["result"]), number(row["f1"], 3)]
    texts += [interval(row["f1_interval"])]
    texts += [number(row["precision"], 3), number(row["recall"], 3), number(row["splits"]), number(row["merges"])]
    return element("tr", *cells, *(element("td", text) for text in texts))


def interval(ends: object) -> str:
    """The ends of an interval; empty without."""
    if not isinstance(ends, Sequence) or len(ends) != 2 or not all(isinstance(end, float) for end in ends):
        return ""
    return f"{number(ends[0], 3)} to {number(ends[1], 3)}"


def between(ends: object) -> str:
    """The same in words."""
    text = interval(ends)
    return f"95 % interval {text}" if text else ""


def shown(value: object) -> str:
    """Text, a number, or a list of them."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(shown(v) for v in value)
    return number(value)
