"""What is to be seen first: how many mitochondria, how much of the tissue, and how good the result is.

The table of measurements: to read, to sort, and to take along as a file.

The scores as tables: of voxels, and of instances where they were scored.

Curves of the scores: precision over recall, the boundary band, and what probabilities are worth.

Where the result came from: command, commit, versions, data, licence.

How large the mitochondria are and how they are shaped: a histogram and the share below, one chart a column.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pandas import DataFrame

from mitoseg.evaluation.report.markup import (
    Axis,
    Chart,
    Content,
    Html,
    Series,
    data_block,
    data_uri,
    element,
    join,
    number,
)
from mitoseg.geometry import Box
from mitoseg.metrics.instances import ROWS
from mitoseg.storage import plain
from mitoseg.tables import frame_csv


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


_UNITS = {"_nm3": ("nm³", "µm³", 1e-9), "_nm2": ("nm²", "µm²", 1e-6), "_nm": ("nm", "nm", 1.0)}

_HIDDEN = {f"box_{axis}{end}" for axis in "zyx" for end in (0, 1)}


def table_section(table: DataFrame | None, rows: int, name: str = "measurements") -> Html | None:
    """The table with its first rows; None where there is none."""
    if table is None or not len(table):
        return None
    shown = [str(key) for key in table.columns if str(key) not in _HIDDEN]
    heads = [
        element("th", element("button", *_heading(key), type="button"), scope="col", aria_sort="none") for key in shown
    ]
    head = element("thead", element("tr", *heads))
    body = element("tbody", *(_row(row, shown) for row in table.head(rows).to_dict("records")))
    size = f"{len(table):,} mitochondria" + (f", of which the first {rows:,} are shown" if len(table) > rows else "")
    csv = frame_csv(table).encode()
    link = element(
        "a",
        "Download all as CSV",
        href=data_uri("text/csv", csv),
        download=f"{name}.csv",
        id="csv",
        class_="button",
    )
    hint = element("span", "Click a heading to sort, a row to pick it above.", class_="soft noprint")
    caption = element("caption", f"{size}.")
    frame = element(
        "div",
        element("table", caption, head, body, id="table"),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="Table of measurements",
    )
    return join(element("p", link, " ", hint), frame, data_block("columns", numeric_columns(table)))


def numeric_columns(table: DataFrame) -> dict[str, list[object]]:
    """What the scene can colour by: the ids, and every column of numbers, rounded to 5 digits."""
    columns: dict[str, list[object]] = {}
    for key in table.columns:
        if str(key) in _HIDDEN or not np.issubdtype(np.asarray(table[key]).dtype, np.number):
            continue
        values = table[key].to_numpy(float, na_value=np.nan)
        columns[str(key)] = [None if not np.isfinite(v) else float(f"{v:.5g}") for v in values]
    if "instance" in table:
        columns["instance"] = [int(v) for v in table["instance"]]
    return columns


def _heading(key: str) -> tuple[str | Html, ...]:
    """Name and unit of a column.

    >>> [str(part) for part in _heading("volume_nm3")]
    ['volume', ' <small>µm³</small>']
    """
    for end, (_, unit, _) in _UNITS.items():
        if key.endswith(end):
            return key.removesuffix(end).replace("_", " "), Html(f" <small>{unit}</small>")
    return (key.replace("_", " "),)


def _row(row: dict[object, object], keys: list[str]) -> Html:
    cells = [_cell(key, row.get(key)) for key in keys]
    return element("tr", *cells, data_instance=row.get("instance"))


def _cell(key: str, value: object) -> Html:
    """A cell, with the exact value for sorting."""
    if isinstance(value, bool | np.bool_):
        return element("td", "yes" if value else "no", data_value=int(value))
    if not isinstance(value, int | float | np.number):
        return element("td", "" if value is None else str(value), class_="text")
    factor = next((factor for end, (_, _, factor) in _UNITS.items() if key.endswith(end)), 1.0)
    if not np.isfinite(value):
        return element("td", "\N{EN DASH}")
    shown = str(int(value)) if key == "instance" else number(value if factor == 1.0 else float(value) * factor)
    return element("td", shown, data_value=repr(value.item() if isinstance(value, np.generic) else value))


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


_FIRST = ("command", "commit", "mitoseg", "time", "seed", "data.title", "data.licence", "data.citation")


def origin_section(provenance: Mapping[str, object]) -> Html | None:
    """Every entry of the provenance, the most important first; None without any."""
    rows = dict(flatten(plain(provenance)))
    if not rows:
        return None
    first = [key for key in _FIRST if key in rows]
    rest = [key for key in rows if key not in first]
    parts = [_list({key: rows[key] for key in first})] if first else []
    if rest:
        parts.append(element("details", element("summary", "All of it"), _list({key: rows[key] for key in rest})))
    return join(*parts)


def flatten(data: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested entries as lines, their names joined by dots; a command is one line.

    >>> dict(flatten({"seed": 1, "data": {"files": [{"path": "a.tif"}]}, "command": ["a", "b c"]}))
    {'seed': '1', 'data.files.1.path': 'a.tif', 'command': "a 'b c'"}
    """
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from flatten(value, f"{name}.{key}" if name else str(key))
    elif isinstance(data, Sequence) and not isinstance(data, str):
        if name in {"command", "arguments"}:
            yield name, shlex.join(str(word) for word in data)
        elif all(not isinstance(value, Mapping | list) for value in data):
            yield name, ", ".join(str(value) for value in data)
        else:
            for i, value in enumerate(data, 1):
                yield from flatten(value, f"{name}.{i}")
    elif data is not None:
        yield name, {True: "yes", False: "no"}.get(data, str(data)) if isinstance(data, bool) else str(data)


def _list(rows: Mapping[str, str]) -> Html:
    parts = []
    for key, value in rows.items():
        shown = element("code", value) if key in {"command", "arguments", "commit"} else value
        parts.append(element("div", element("dt", key), element("dd", shown)))
    return element("dl", *parts, class_="origin")


_WHOLE = 20  # values of whole numbers that have a bin each

_LEAST = 3
"""Instances from which a distribution is drawn."""


@dataclass(frozen=True)
class Column:
    """A column of the table that is drawn.

    Attributes:
        key: Its name.
        name: To read.
        unit: That it is drawn in; empty for a ratio.
        factor: From the stored unit to that one.
        log: Whether the axis is logarithmic.
    """

    key: str
    name: str
    unit: str = ""
    factor: float = 1.0
    log: bool = False


COLUMNS = (
    Column("volume_nm3", "volume", "µm³", 1e-9, log=True),
    Column("surface_nm2", "surface", "µm²", 1e-6, log=True),
    Column("length_nm", "length", "µm", 1e-3),
    Column("diameter_mean_nm", "mean diameter", "nm"),
    Column("sphericity", "sphericity"),
    Column("tortuosity", "tortuosity"),
    Column("branches", "branches"),
    Column("complexity", "complexity index"),
    Column("neighbour_distance_nm", "distance to the nearest neighbour", "µm", 1e-3),
    Column("grey_mean", "mean grey level"),
    Column("probability_mean", "mean probability"),
)

SIZES = (
    Column("voxels", "volume", "voxels", log=True),
    Column("diameter_sphere_nm", "diameter of a ball of that volume", "nm"),
)
"""Where there are no better ones."""


def distribution_section(table: DataFrame | None) -> Html | None:
    """Charts of the columns that the table has; None without any."""
    if table is None:
        return None
    whole = whole_instances(table)
    columns = [column for column in COLUMNS if column.key in table]
    if len(columns) < 2:
        columns += [column for column in SIZES if column.key in table and not (columns and column.key == "voxels")]
    charts = [chart for column in columns if (chart := distribution(whole, column)) is not None]
    if not charts:
        return None
    cut = len(table) - len(whole)
    said = f"{len(whole):,} mitochondria. "
    if cut:
        said += (
            f"{cut:,} more are cut by the border of the volume; of these only a part is seen, so they are left out. "
        )
    said += "Bars: how many. Line: the share of those that are smaller, from 0 to 1. Dashed: the median."
    return join(element("p", said, class_="soft"), element("div", *charts, class_="charts"))


def whole_instances(table: DataFrame) -> DataFrame:
    """The rows that the border does not cut."""
    if "touches_border" not in table:
        return table
    return table[~table["touches_border"].astype(bool)]


def distribution(table: DataFrame, column: Column) -> Html | None:
    """A figure of one column; None where there is too little to draw."""
    values = table[column.key].to_numpy(float, na_value=np.nan) * column.factor
    values = np.sort(values[np.isfinite(values)])
    values = values[values > 0] if column.log else values
    if len(values) < _LEAST or values[0] == values[-1]:
        return None
    edges = bins(values, column.log)
    counts, _ = np.histogram(values, edges)
    quarter, median, three = (float(v) for v in np.percentile(values, (25, 50, 75)))
    unit = f" {column.unit}" if column.unit else ""
    said = f"median {number(median, 3)}{unit}, middle half {number(quarter, 3)} to {number(three, 3)}{unit}"
    pad = 0.03 * (np.log10(edges[-1] / edges[0]) if column.log else edges[-1] - edges[0])
    low, high = (edges[0] / 10**pad, edges[-1] * 10**pad) if column.log else (edges[0] - pad, edges[-1] + pad)
    x = Axis(f"{column.name} ({column.unit})" if column.unit else column.name, float(low), float(high), column.log)
    top = float(counts.max()) * 1.08
    chart = Chart(x, Axis("mitochondria", 0, top, whole=True), f"Histogram of {column.name} of {len(values)}: {said}")
    chart.bars(edges, counts)
    share = np.arange(1, len(values) + 1) / len(values) * top / 1.08
    chart.draw(Series("", np.repeat(values, 2)[1:], np.repeat(share, 2)[:-1], "c2"))
    chart.upright(median, number(median, 3))
    return element("figure", chart.svg(), element("figcaption", element("b", column.name), " ", said))


def bins(values: Sequence[float] | npt.NDArray[np.float64], log: bool) -> npt.NDArray[np.float64]:
    """Edges of bins by the rule of Freedman and Diaconis, 5 to 40 of them, on a logarithmic axis if asked.

    Whole numbers that span few values have a bin each.

    >>> bins([1, 1, 2, 4], log=False).tolist()
    [0.5, 1.5, 2.5, 3.5, 4.5]
    """
    low, high = np.min(values), np.max(values)
    if not log and high - low < _WHOLE and np.array_equal(values, np.rint(values)):
        return np.arange(low - 0.5, high + 1)
    v = np.log10(values) if log else np.asarray(values, float)
    quarter, three = np.percentile(v, (25, 75))
    width = 2 * (three - quarter) / len(v) ** (1 / 3)
    count = int(np.clip(np.ceil((v.max() - v.min()) / width) if width > 0 else 10, 5, 40))
    edges = np.linspace(v.min(), v.max(), count + 1)
    result: npt.NDArray[np.float64] = 10**edges if log else edges
    result[[0, -1]] = np.min(values), np.max(values)  # rounding would leave an end outside
    return result
