"""What is to be seen first: how many mitochondria, how much of the tissue, and how good the result is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pandas import DataFrame

from mitoseg.evaluation.report.distributions import whole_instances
from mitoseg.evaluation.report.markup import Html, element, join, number
from mitoseg.evaluation.report.options import Content
from mitoseg.evaluation.report.scoring import SCORES, between
from mitoseg.geometry import Box


def headline_section(content: Content, table: DataFrame | None) -> Html | None:
    """Cards of facts; None where nothing is known."""
    cards = [*_facts(content, table), *_score_cards(content.scores), *_instance_cards(content.scores)]
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
    name = "mitochondria" if len(table) > 1 else "mitochondrion"
    cards = [_card(f"{len(table):,}", name, f"{cut:,} of them cut by the border" if cut else "")]
    if box is not None and content.spacing is not None:
        tissue = float(np.prod(box.shape) * np.prod(content.spacing)) * 1e-9
        counted = "; those that are cut count half" if cut else ""
        cards.append(
            _card(
                number((len(whole) + 0.5 * cut) / tissue, 3),
                "mitochondria per µm³",
                f"in {number(tissue, 3)} µm³ of tissue{counted}",
            )
        )
    if "volume_nm3" in table and len(whole):
        quarter, median, three = np.percentile(whole["volume_nm3"] * 1e-9, (25, 50, 75))
        said = f"middle half {number(quarter, 2)} to {number(three, 2)}"
        said += f", of the {len(whole):,} that are not cut" if cut else ""
        value = join(number(float(median), 2), Html(" <small>µm³</small>"))
        cards.append(_card(value, "median volume", said))
    if box is not None and "voxels" in table:
        cards.append(_card(f"{100 * _share(table, box):.2f} %", "of the volume", "is mitochondria"))
    return cards


def _share(table: DataFrame, box: Box) -> float:
    return float(table["voxels"].sum()) / box.size


def _score_cards(scores: Mapping[str, Any]) -> list[Html]:
    intervals = scores.get("interval") or {}
    cards = []
    for key, name, said in SCORES[:4]:
        if isinstance(scores.get(key), float):
            cards.append(_card(number(scores[key], 3), name, between(intervals.get(key)) or said))
    return cards


def _instance_cards(scores: Mapping[str, Any]) -> list[Html]:
    """F1 of all instances, where the scores have it."""
    found = scores.get("instances")
    row = found.get("all") if isinstance(found, Mapping) else None
    matched = row.get("matched") if isinstance(row, Mapping) else None
    if not isinstance(matched, Sequence) or not matched:
        return []
    first = matched[0]
    said = f"at IoU {first.get('iou')}; {between(first.get('f1_interval'))}".removesuffix("; ")
    return [_card(number(first.get("f1"), 3), "F1 of instances", said)]


def _card(value: str, name: str, said: str) -> Html:
    parts = [element("dd", value), element("dt", name)]
    return element("dl", *parts, element("p", said, class_="soft") if said else "", class_="card")
