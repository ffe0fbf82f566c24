"""What is to be seen first: how many mitochondria, how much of the tissue, and how good the result is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pandas import DataFrame

from mitoseg.evaluation.report.distributions import whole_instances
from mitoseg.evaluation.report.markup import Html, element, join, number
from mitoseg.evaluation.report.options import Content
from mitoseg.geometry import Box

_SCORES = (
    ("jaccard_foreground", "JAC of mitochondria", "TP / (TP + FP + FN)"),
    ("dice", "Dice", "2 TP / (2 TP + FP + FN)"),
    ("precision", "precision", "of what was found, the share that is right"),
    ("recall", "recall", "of what is there, the share that was found"),
    ("jaccard_background", "JAC of background", ""),
    ("jaccard_mean", "JAC, mean of both", ""),
)


def headline_section(content: Content, table: DataFrame | None) -> Html | None:
    """Cards of facts; None where nothing is known."""
    cards = [*_facts(content, table), *_score_cards(content.scores), *_instance_cards(content.scores)]
    cards += [_card(_shown(value), str(name).replace("_", " "), "") for name, value in content.summary.items()]
    return element("div", *cards, class_="cards") if cards else None


def volume_line(content: Content) -> str:
    """Shape, voxel size and extent of what is shown."""
    box = content.box
    if box is None:
        return ""
    shape = " \N{MULTIPLICATION SIGN} ".join(str(n) for n in box.shape)
    text = f"{shape} voxels (z, y, x)"
    if content.spacing is not None:
        sizes = " \N{MULTIPLICATION SIGN} ".join(f"{size:g}" for size in content.spacing)
        extent = " \N{MULTIPLICATION SIGN} ".join(
            f"{n * size / 1000:.3g}" for n, size in zip(box.shape, content.spacing, strict=True)
        )
        text += f" of {sizes} nm: {extent} µm"
    if content.crop is not None:
        text += f"; the part {box} of the volume"
    return text


def _facts(content: Content, table: DataFrame | None) -> list[Html]:
    box = content.box
    if table is None or not len(table):
        return []
    whole = whole_instances(table)
    cut = len(table) - len(whole)
    cards = [_card(f"{len(table):,}", "mitochondria", f"{cut:,} of them cut by the border" if cut else "")]
    if box is not None and content.spacing is not None:
        tissue = float(np.prod(box.shape) * np.prod(content.spacing)) * 1e-9
        counted = ", those that are cut included" if cut else ""
        cards.append(
            _card(
                number(len(table) / tissue, 3),
                "mitochondria per µm³",
                f"in {number(tissue, 3)} µm³ of tissue{counted}",
            )
        )
    if "volume_nm3" in table and len(whole):
        quarter, median, three = np.percentile(whole["volume_nm3"] * 1e-9, (25, 50, 75))
        said = f"middle half {number(quarter, 2)} to {number(three, 2)}"
        said += f", of the {len(whole):,} that are not cut" if cut else ""
        shown = join(number(float(median), 2), Html(" <small>µm³</small>"))
        cards.append(_card(shown, "median volume", said))
    if box is not None and "voxels" in table:
        cards.append(_card(f"{100 * _share(table, box):.2f} %", "of the volume", "is mitochondria"))
    return cards


def _share(table: DataFrame, box: Box) -> float:
    return float(table["voxels"].sum()) / box.size


def _score_cards(scores: Mapping[str, Any]) -> list[Html]:
    intervals = scores.get("interval") or {}
    cards = []
    for key, name, said in _SCORES[:4]:
        if isinstance(scores.get(key), float):
            cards.append(_card(number(scores[key], 3), name, _between(intervals.get(key)) or said))
    return cards


def _instance_cards(scores: Mapping[str, Any]) -> list[Html]:
    """F1 of the instances that the border does not cut, where the scores have it."""
    found = scores.get("instances")
    row = found.get("whole") if isinstance(found, Mapping) else None
    matched = row.get("matched") if isinstance(row, Mapping) else None
    if not isinstance(matched, Sequence) or not matched:
        return []
    first = matched[0]
    said = f"at IoU {first.get('iou')}; {_between(first.get('f1_interval'))}".removesuffix("; ")
    return [_card(number(first.get("f1"), 3), "F1 of instances", said)]


def score_section(scores: Mapping[str, Any]) -> Html | None:
    """All pooled scores with their intervals; None without."""
    intervals = scores.get("interval") or {}
    rows = []
    for key, name, said in _SCORES:
        if key in scores:
            cells = [element("th", name, scope="row"), element("td", number(scores[key]))]
            cells += [element("td", _interval(intervals.get(key))), element("td", said, class_="text soft")]
            rows.append(element("tr", *cells))
    if not rows:
        return None
    heads = [element("th", text, scope="col") for text in ("score", "value", "95 % interval", "")]
    note = f"threshold {_shown(scores.get('threshold'))} ({_shown(scores.get('threshold_source'))}); "
    note += f"{number(scores.get('voxels'))} voxels; box {_shown(scores.get('crop'))}. "
    slabs = scores.get("slab_counts") or []
    note += f"Intervals: bootstrap over {len(slabs)} runs of slices." if len(slabs) > 1 else ""
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="plain")
    return join(element("div", table, class_="scroll fit"), element("p", note, class_="soft"))


def _interval(ends: object) -> str:
    if not isinstance(ends, Sequence) or len(ends) != 2 or not all(isinstance(end, float) for end in ends):
        return ""
    return f"{number(ends[0], 3)} to {number(ends[1], 3)}"


def _between(ends: object) -> str:
    text = _interval(ends)
    return f"95 % interval {text}" if text else ""


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(_shown(v) for v in value)
    return number(value)


def _card(value: str, name: str, said: str) -> Html:
    parts = [element("dd", value), element("dt", name)]
    return element("dl", *parts, element("p", said, class_="soft") if said else "", class_="card")
