"""The sections of numbers: headline, measurements, scores, curves, distributions, and where the result comes from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pandas import DataFrame

from mitoseg.evaluation.figures import JACCARD_LEVELS, as_float, boundary_line, equal_jaccard
from mitoseg.evaluation.report.markup import Axis, Chart, Content, Section, data_uri, number
from mitoseg.evaluation.table import SCORES, column_label
from mitoseg.metrics.instances import ROWS
from mitoseg.storage import plain
from mitoseg.tables import frame_csv

Figure = tuple[Chart, str, str]
"""A chart, its name, and what is said of it."""

_SHOWN = ("jaccard_foreground", "dice", "precision", "recall", "jaccard_background", "jaccard_mean")
"""Scores of voxels, the first four as cards."""

_HIDDEN = {f"box_{axis}{end}" for axis in "zyx" for end in (0, 1)}
_FIRST = ("command", "commit", "mitoseg", "time", "seed", "data.title", "data.licence", "data.citation")
_WHOLE = 20  # values of whole numbers that have a bin each
_LEAST = 3  # instances from which a distribution is drawn

_COLUMNS = {
    "volume_nm3": ("volume", "µm³", 1e-9, True),
    "surface_nm2": ("surface", "µm²", 1e-6, True),
    "length_nm": ("length", "µm", 1e-3, False),
    "diameter_mean_nm": ("mean diameter", "nm", 1.0, False),
    "sphericity": ("sphericity", "", 1.0, False),
    "tortuosity": ("tortuosity", "", 1.0, False),
    "branches": ("branches", "", 1.0, False),
    "complexity": ("complexity index", "", 1.0, False),
    "neighbour_distance_nm": ("distance to the nearest neighbour", "µm", 1e-3, False),
    "grey_mean": ("mean grey level", "", 1.0, False),
    "probability_mean": ("mean probability", "", 1.0, False),
    "voxels": ("volume", "voxels", 1.0, True),
    "diameter_sphere_nm": ("diameter of a ball of that volume", "nm", 1.0, False),
}
"""Columns whose distribution is drawn: name, unit and factor to it, whether the axis is logarithmic."""

_SIZES = ("voxels", "diameter_sphere_nm")
"""Drawn where there are no better ones."""


def headline_section(content: Content, table: DataFrame | None) -> Section | None:
    """Cards of facts; None where nothing is known."""
    cards, scores = _facts(content, table), content.scores
    intervals = scores.get("interval") or {}
    for key in _SHOWN[:4]:
        if isinstance(scores.get(key), float):
            text, (name, said) = _interval(intervals.get(key)), SCORES[key]
            cards.append(_card(number(scores[key], 3), name, f"95 % interval {text}" if text else said))
    matched = ((scores.get("instances") or {}).get("all") or {}).get("matched")
    if matched:
        text = _interval(matched[0].get("f1_interval"))
        said = f"at IoU {matched[0].get('iou')}" + (f"; 95 % interval {text}" if text else "")
        cards.append(_card(number(matched[0].get("f1"), 3), "F1 of instances", said))
    return {"cards": cards} if cards else None


def volume_line(content: Content) -> str:
    """Shape, voxel size and extent of what is shown."""
    box = content.box
    if box is None:
        return ""
    times = " \N{MULTIPLICATION SIGN} "
    text = f"{times.join(str(n) for n in box.shape)} voxels (z, y, x)"
    if content.spacing is not None:
        sizes = times.join(f"{size:g}" for size in content.spacing)
        extent = times.join(f"{n * size / 1000:.3g}" for n, size in zip(box.shape, content.spacing, strict=True))
        text += f" of {sizes} nm: {extent} µm"
    return text if content.crop is None else f"{text}; the part {box} of the volume"


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
        said = f"in {number(tissue, 3)} µm³ of tissue" + ("; those that are cut count half" if cut else "")
        cards.append(_card(number((len(whole) + 0.5 * cut) / tissue, 3), "mitochondria per µm³", said))
    if "volume_nm3" in table and len(whole):
        quarter, median, three = np.percentile(whole["volume_nm3"] * 1e-9, (25, 50, 75))
        said = f"middle half {number(quarter, 2)} to {number(three, 2)}"
        said += f", of the {len(whole):,} that are not cut" if cut else ""
        cards.append(_card(number(float(median), 2), "median volume", said, "µm³"))
    if box is not None and "voxels" in table:
        share = float(table["voxels"].sum()) / box.size
        cards.append(_card(f"{100 * share:.2f} %", "of the volume", "is mitochondria"))
    return cards


def _card(value: str, name: str, said: str, unit: str = "") -> dict[str, str]:
    return {"value": value, "name": name, "said": said, "unit": unit}


def table_section(table: DataFrame | None, rows: int) -> Section | None:
    """The table with its first rows, and what the scene can colour by, its columns of numbers; None without any."""
    if table is None or not len(table):
        return None
    shown = [str(key) for key in table.columns if str(key) not in _HIDDEN]
    columns: dict[str, list[object]] = {}
    for key in shown:
        if np.issubdtype(np.asarray(table[key]).dtype, np.number):
            values = table[key].to_numpy(float, na_value=np.nan)
            columns[key] = [None if not np.isfinite(v) else float(f"{v:.5g}") for v in values]
    if "instance" in table:
        columns["instance"] = [int(v) for v in table["instance"]]
    return {
        "count": len(table),
        "csv": data_uri("text/csv", frame_csv(table).encode()),
        "heads": [column_label(key)[:2] for key in shown],
        "rows": [
            (row.get("instance"), [_cell(key, row.get(key)) for key in shown])
            for row in table.head(rows).to_dict("records")
        ],
        "columns": columns,
    }


def _cell(key: str, value: object) -> tuple[str, dict[str, object]]:
    """Text and attributes of a cell; among these the exact value, for sorting."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no", {"data-value": int(value)}
    if not isinstance(value, int | float | np.number):
        return "" if value is None else str(value), {"class": "text"}
    if not np.isfinite(value):
        return "\N{EN DASH}", {}
    scale = column_label(key)[2]
    shown = str(int(value)) if key == "instance" else number(value if scale == 1.0 else float(value) / scale)
    return shown, {"data-value": repr(value.item() if isinstance(value, np.generic) else value)}


def score_section(scores: Mapping[str, Any]) -> Section | None:
    """All pooled scores with their intervals, and those of instances where they were scored; None without."""
    intervals = scores.get("interval") or {}
    rows = [
        (SCORES[key][0], number(scores[key]), _interval(intervals.get(key)), SCORES[key][1])
        for key in _SHOWN
        if key in scores
    ]
    if not rows:
        return None
    note = f"threshold {_text(scores.get('threshold'))} ({_text(scores.get('threshold_source'))}); "
    note += f"{number(scores.get('voxels'))} voxels; box {_text(scores.get('crop'))}. "
    slabs = scores.get("slab_counts") or []
    note += f"Intervals: bootstrap over {len(slabs)} runs of slices." if len(slabs) > 1 else ""
    found = scores.get("instances") or {}
    instances = []
    for name in ROWS:
        for matched in found.get(name, {}).get("matched", ()):
            row = {**found[name], **matched}
            texts = [f"{row['iou']:g}", number(row["truth"]), number(row["result"]), number(row["f1"], 3)]
            texts += [_interval(row["f1_interval"]), number(row["precision"], 3), number(row["recall"], 3)]
            texts += [number(row["splits"]), number(row["merges"])]
            instances.append(("cut by the border" if name == "cut" else name, texts))
    return {"rows": rows, "note": note, "instances": instances, "small": found.get("small")}


def _interval(ends: Any) -> str:  # noqa: ANN401
    """The ends of an interval; empty without."""
    if not ends or not all(isinstance(end, float) for end in ends):
        return ""
    return f"{number(ends[0], 3)} to {number(ends[1], 3)}"


def _text(value: object) -> str:
    """Text, a number, or a list of them."""
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return value if isinstance(value, str) else number(value)


def curve_section(scores: Mapping[str, Any]) -> Section | None:
    """The curves that the scores hold; None without any."""
    figures: list[Figure] = []
    if (scores.get("precision_recall") or {}).get("recall"):
        figures.append(_precision_recall(scores))
    if scores.get("boundary"):
        figures.append(_boundary(scores))
    if (scores.get("reliability") or {}).get("voxels"):
        error = number(scores.get("expected_calibration_error"), 2)
        x, y = Axis("mean probability", 0, 1), Axis("share of mitochondria", 0, 1)
        chart = Chart(x, y, f"Reliability; calibration error {error}")
        chart.draw([0, 1], [0, 1], "faint", "calibrated")
        bins = scores["reliability"]
        chart.draw(_floats(bins["confidence"]), _floats(bins["share"]), "c1", f"error {error}", points=True)
        figures.append((chart, "Reliability", "Below the line the map promises too much."))
    return {"figures": figures} if figures else None


def _precision_recall(scores: Mapping[str, Any]) -> Figure:
    points = scores["precision_recall"]
    area, used = number(scores.get("average_precision"), 3), number(scores.get("jaccard_foreground"), 3)
    chart = Chart(Axis("recall", 0, 1), Axis("precision", 0, 1.02), f"Precision over recall; area {area}")
    for level in JACCARD_LEVELS:
        chart.draw(*equal_jaccard(level, 60), "faint")
    chart.draw(_floats(points["recall"]), _floats(points["precision"]), "c1", f"area {area}")
    recall, precision = _floats([scores.get("recall")]), _floats([scores.get("precision")])
    chart.draw(recall, precision, "c2", f"the threshold used: JAC {used}", line=False)
    return chart, "Precision over recall", "Thin lines: equal JAC, 0.5 to 0.9."


def _boundary(scores: Mapping[str, Any]) -> Figure:
    lines = []
    for key, name, style in (("jaccard_foreground", "mitochondria", "c1"), ("jaccard_mean", "both classes", "c2")):
        for dims, where, more in ((3, "3D", ""), (2, "in plane", " dashed")):
            lines.append((*boundary_line(scores, key, dims), style + more, f"{name}, {where}"))
    finite = [value for _, values, _, _ in lines for value in values if np.isfinite(value)]
    floor = np.floor(min([1.0, *finite]) * 20 - 0.2) / 20
    chart = Chart(
        Axis("voxels left out on both sides of the border", 0, max(max(widths) for widths, *_ in lines)),
        Axis("Jaccard index", max(float(floor), 0), 1),
        "Jaccard index against the width of the boundary band that is left out",
    )
    for widths, values, style, name in lines:
        chart.draw(widths, values, style, name, points="dashed" not in style)
    return chart, "Without a band at the border", "Annotators differ by a voxel or two at a membrane."


def _floats(values: Sequence[object]) -> list[float]:
    return [as_float(value) for value in values]


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
    elif isinstance(data, list):
        if name in {"command", "arguments"}:
            yield name, shlex.join(str(word) for word in data)
        elif all(not isinstance(value, Mapping | list) for value in data):
            yield name, ", ".join(str(value) for value in data)
        else:
            for i, value in enumerate(data, 1):
                yield from flatten(value, f"{name}.{i}")
    elif isinstance(data, bool):
        yield name, "yes" if data else "no"
    elif data is not None:
        yield name, str(data)


def distribution_section(table: DataFrame | None) -> Section | None:
    """Charts of the columns that the table has; None without any."""
    if table is None:
        return None
    whole = whole_instances(table)
    keys = [key for key in _COLUMNS if key in table and key not in _SIZES]
    if len(keys) < 2:
        keys += [key for key in _SIZES if key in table and not (keys and key == "voxels")]
    charts = [chart for key in keys if (chart := _distribution(whole, key)) is not None]
    return {"whole": len(whole), "cut": len(table) - len(whole), "charts": charts} if charts else None


def whole_instances(table: DataFrame) -> DataFrame:
    """The rows that the border does not cut."""
    return table[~table["touches_border"].astype(bool)] if "touches_border" in table else table


def _distribution(table: DataFrame, key: str) -> Figure | None:
    """A figure of one column; None where there is too little to draw."""
    name, unit, factor, log = _COLUMNS[key]
    values = table[key].to_numpy(float, na_value=np.nan) * factor
    values = np.sort(values[np.isfinite(values)])
    values = values[values > 0] if log else values
    if len(values) < _LEAST or values[0] == values[-1]:
        return None
    edges = bins(values, log)
    counts, _ = np.histogram(values, edges)
    quarter, median, three = (float(v) for v in np.percentile(values, (25, 50, 75)))
    after = f" {unit}" if unit else ""
    said = f"median {number(median, 3)}{after}, middle half {number(quarter, 3)} to {number(three, 3)}{after}"
    pad = 0.03 * (np.log10(edges[-1] / edges[0]) if log else edges[-1] - edges[0])
    low, high = (edges[0] / 10**pad, edges[-1] * 10**pad) if log else (edges[0] - pad, edges[-1] + pad)
    x = Axis(f"{name} ({unit})" if unit else name, float(low), float(high), log)
    top = float(counts.max()) * 1.08
    chart = Chart(x, Axis("mitochondria", 0, top, whole=True), f"Histogram of {name} of {len(values)}: {said}")
    chart.bars(edges, counts)
    share = np.arange(1, len(values) + 1) / len(values) * top / 1.08
    chart.draw(np.repeat(values, 2)[1:], np.repeat(share, 2)[:-1], "c2")
    chart.upright(median, number(median, 3))
    return chart, name, said


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
    result[[0, -1]] = low, high  # rounding would leave an end outside
    return result
