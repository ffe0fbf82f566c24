"""The sections of numbers: headline, measurements, scores, curves, distributions, and where the result comes from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pandas import DataFrame

from mitoseg.evaluation.report.markup import Axis, Chart, Content, Section, Series, data_uri, number
from mitoseg.metrics.instances import ROWS
from mitoseg.storage import plain
from mitoseg.tables import frame_csv


def headline_section(content: Content, table: DataFrame | None) -> Section | None:
    """Cards of facts; None where nothing is known."""
    cards = [*_facts(content, table), *_score_cards(content.scores), *_instance_cards(content.scores)]
    return {"cards": cards} if cards else None


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


def _facts(content: Content, table: DataFrame | None) -> list[dict[str, str]]:
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
        cards.append(_card(number(float(median), 2), "median volume", said, "µm³"))
    if box is not None and "voxels" in table:
        share = float(table["voxels"].sum()) / box.size
        cards.append(_card(f"{100 * share:.2f} %", "of the volume", "is mitochondria"))
    return cards


def _score_cards(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    intervals = scores.get("interval") or {}
    cards = []
    for key, name, said in SCORES[:4]:
        if isinstance(scores.get(key), float):
            cards.append(_card(number(scores[key], 3), name, between(intervals.get(key)) or said))
    return cards


def _instance_cards(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """F1 of all instances, where the scores have it."""
    found = scores.get("instances")
    row = found.get("all") if isinstance(found, Mapping) else None
    matched = row.get("matched") if isinstance(row, Mapping) else None
    if not isinstance(matched, Sequence) or not matched:
        return []
    first = matched[0]
    said = f"at IoU {first.get('iou')}; {between(first.get('f1_interval'))}".removesuffix("; ")
    return [_card(number(first.get("f1"), 3), "F1 of instances", said)]


def _card(value: str, name: str, said: str, unit: str = "") -> dict[str, str]:
    return {"value": value, "name": name, "said": said, "unit": unit}


_UNITS = {"_nm3": ("nm³", "µm³", 1e-9), "_nm2": ("nm²", "µm²", 1e-6), "_nm": ("nm", "nm", 1.0)}

_HIDDEN = {f"box_{axis}{end}" for axis in "zyx" for end in (0, 1)}


def table_section(table: DataFrame | None, rows: int) -> Section | None:
    """The table with its first rows; None where there is none."""
    if table is None or not len(table):
        return None
    shown = [str(key) for key in table.columns if str(key) not in _HIDDEN]
    return {
        "count": len(table),
        "csv": data_uri("text/csv", frame_csv(table).encode()),
        "heads": [_heading(key) for key in shown],
        "rows": [
            (row.get("instance"), [_cell(key, row.get(key)) for key in shown])
            for row in table.head(rows).to_dict("records")
        ],
        "columns": numeric_columns(table),
    }


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


def _heading(key: str) -> tuple[str, str]:
    """Name and unit of a column.

    >>> _heading("volume_nm3"), _heading("touches_border")
    (('volume', 'µm³'), ('touches border', ''))
    """
    for end, (_, unit, _) in _UNITS.items():
        if key.endswith(end):
            return key.removesuffix(end).replace("_", " "), unit
    return key.replace("_", " "), ""


def _cell(key: str, value: object) -> tuple[str, dict[str, object]]:
    """Text and attributes of a cell; among these the exact value, for sorting."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no", {"data-value": int(value)}
    if not isinstance(value, int | float | np.number):
        return "" if value is None else str(value), {"class": "text"}
    factor = next((factor for end, (_, _, factor) in _UNITS.items() if key.endswith(end)), 1.0)
    if not np.isfinite(value):
        return "\N{EN DASH}", {}
    shown = str(int(value)) if key == "instance" else number(value if factor == 1.0 else float(value) * factor)
    return shown, {"data-value": repr(value.item() if isinstance(value, np.generic) else value)}


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


def score_section(scores: Mapping[str, Any]) -> Section | None:
    """All pooled scores with their intervals, and those of instances where they were scored; None without."""
    intervals = scores.get("interval") or {}
    rows = [
        (name, number(scores[key]), interval(intervals.get(key)), said) for key, name, said in SCORES if key in scores
    ]
    if not rows:
        return None
    note = f"threshold {shown(scores.get('threshold'))} ({shown(scores.get('threshold_source'))}); "
    note += f"{number(scores.get('voxels'))} voxels; box {shown(scores.get('crop'))}. "
    slabs = scores.get("slab_counts") or []
    note += f"Intervals: bootstrap over {len(slabs)} runs of slices." if len(slabs) > 1 else ""
    found = scores.get("instances")
    found = found if isinstance(found, Mapping) and "all" in found else {}
    instances = [
        (_OBJECTS.get(name, name), _instance_texts({**found[name], **matched}))
        for name in ROWS
        if name in found
        for matched in found[name]["matched"]
    ]
    return {"rows": rows, "note": note, "instances": instances, "small": found.get("small")}


def _instance_texts(row: Mapping[str, Any]) -> list[str]:
    first = [f"{row['iou']:g}", number(row["truth"]), number(row["result"]), number(row["f1"], 3)]
    last = [number(row["precision"], 3), number(row["recall"], 3), number(row["splits"]), number(row["merges"])]
    return [*first, interval(row["f1_interval"]), *last]


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

Figure = tuple[Chart, str, str]
"""A chart, its name, and what is said of it."""

_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)


def curve_section(scores: Scores) -> Section | None:
    """The curves that the scores hold; None without any."""
    figures = [_precision_recall(scores), _boundary(scores), _reliability(scores)]
    found = [figure for figure in figures if figure is not None]
    return {"figures": found} if found else None


def _precision_recall(scores: Scores) -> Figure | None:
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
    return chart, "Precision over recall", "Thin lines: equal JAC, 0.5 to 0.9."


def _boundary(scores: Scores) -> Figure | None:
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
    return chart, "Without a band at the border", "Annotators differ by a voxel or two at a membrane."


def _reliability(scores: Scores) -> Figure | None:
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
    return chart, "Reliability", "Below the line the map promises too much."


def _floats(values: Sequence[Any]) -> list[float]:
    """Numbers; NaN for null."""
    return [float(v) if isinstance(v, int | float) else float("nan") for v in values]


_FIRST = ("command", "commit", "mitoseg", "time", "seed", "data.title", "data.licence", "data.citation")


def origin_section(provenance: Mapping[str, object]) -> Section | None:
    """Every entry of the provenance, the most important first; None without any."""
    rows = dict(flatten(plain(provenance)))
    if not rows:
        return None
    first = {key: rows[key] for key in _FIRST if key in rows}
    return {"first": first, "rest": {key: value for key, value in rows.items() if key not in first}}


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


def distribution_section(table: DataFrame | None) -> Section | None:
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
    return {"whole": len(whole), "cut": len(table) - len(whole), "charts": charts}


def whole_instances(table: DataFrame) -> DataFrame:
    """The rows that the border does not cut."""
    if "touches_border" not in table:
        return table
    return table[~table["touches_border"].astype(bool)]


def distribution(table: DataFrame, column: Column) -> Figure | None:
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
    return chart, column.name, said


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
