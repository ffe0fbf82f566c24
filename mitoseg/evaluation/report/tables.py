"""The sections of numbers: headline, measurements, scores, curves, distributions, and where the result comes from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pandas import DataFrame

from mitoseg.evaluation.figures import curve_figures, distribution_figure, expected_figure
from mitoseg.evaluation.report.markup import Content, Section, data_uri, number, svg
from mitoseg.evaluation.table import SCORES, column_label
from mitoseg.metrics.instances import ROWS
from mitoseg.storage import plain
from mitoseg.tables import frame_csv

_SHOWN = ("jaccard_foreground", "dice", "precision", "recall", "jaccard_background", "jaccard_mean")
"""Scores of voxels, the first four as cards."""

_HIDDEN = {f"box_{axis}{end}" for axis in "zyx" for end in (0, 1)}
_FIRST = ("command", "commit", "mitoseg", "time", "seed", "data.title", "data.licence", "data.citation")
_LEAST = 3  # instances from which a distribution is drawn

_DRAWN = (
    *("volume_nm3", "surface_nm2", "length_nm", "diameter_mean_nm", "sphericity", "tortuosity", "branches"),
    *("complexity", "neighbour_distance_nm", "grey_mean", "probability_mean", "voxels", "diameter_sphere_nm"),
)
"""Columns whose distribution is drawn."""

_LOGARITHMIC = {"volume_nm3", "surface_nm2", "voxels"}
_SIZES = ("voxels", "diameter_sphere_nm")  # drawn where there are no better ones


def headline_section(content: Content, table: DataFrame | None) -> Section | None:
    """How many mitochondria there are, how dense and large (µm³), and first scores; None where nothing is known."""
    scores, facts = content.scores, dict[str, float]()
    if table is not None and len(table):
        whole = whole_instances(table)
        cut = len(table) - len(whole)
        facts |= {"count": len(table), "cut": cut}
        if content.box is not None and content.spacing is not None:
            facts["tissue"] = float(np.prod(content.box.shape) * np.prod(content.spacing)) * 1e-9
            facts["density"] = (len(whole) + 0.5 * cut) / facts["tissue"]
        if "volume_nm3" in table and len(whole):
            quartiles = np.percentile(whole["volume_nm3"] * 1e-9, (25, 50, 75)).tolist()
            facts |= zip(("quarter", "median", "three"), quartiles, strict=True)
        if content.box is not None and "voxels" in table:
            facts["share"] = float(table["voxels"].sum()) / content.box.size
    shown = {key: SCORES[key] for key in _SHOWN[:4] if isinstance(scores.get(key), float)}
    matched = ((scores.get("instances") or {}).get("all") or {}).get("matched")
    if not facts and not shown and not matched:
        return None
    return {"facts": facts, "scores": scores, "shown": shown, "matched": matched[0] if matched else None}


def table_section(table: DataFrame | None, rows: int) -> Section | None:
    """The table with its first rows, and what the scene can colour by, its columns of numbers; None without any."""
    if table is None or not len(table):
        return None
    first = table.head(rows).to_dict("records")
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
        "rows": [(row.get("instance"), [_cell(key, row.get(key)) for key in shown]) for row in first],
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
    shown = {key: SCORES[key] for key in _SHOWN if key in scores}
    if not shown:
        return None
    found = scores.get("instances") or {}
    instances = [
        ("cut by the border" if name == "cut" else name, {**found[name], **matched})
        for name in ROWS
        for matched in found.get(name, {}).get("matched", ())
    ]
    return {"scores": scores, "shown": shown, "instances": instances, "small": found.get("small")}


def interval(ends: Any) -> str:  # noqa: ANN401
    """The ends of an interval; empty without."""
    if not ends or not all(isinstance(end, float) for end in ends):
        return ""
    return f"{number(ends[0], 3)} to {number(ends[1], 3)}"


def text(value: object) -> str:
    """Text, a number, or a list of them."""
    if isinstance(value, list | tuple):
        return ", ".join(text(v) for v in value)
    return value if isinstance(value, str) else number(value)


_CURVES = {
    "expected": ("JAC to expect, without labels", "Of some fields; look where it is below the line."),
    "precision_recall": ("Precision over recall", "Thin lines: equal JAC, 0.5 to 0.9."),
    "boundary": ("Without a band at the border", "Annotators differ by a voxel or two at a membrane."),
    "reliability": ("Reliability", "Below the line the map promises too much."),
}


def curve_section(scores: Mapping[str, Any], provenance: Mapping[str, Any]) -> Section | None:
    """The curves that the scores hold, and the JAC that was to be expected without labels; None without any."""
    found = curve_figures(scores)
    if expected := (provenance.get("chosen") or {}).get("expected"):
        found["expected"] = expected_figure(expected["fields"], expected["doubtful"])
    figures = [(svg(found[key]), *said) for key, said in _CURVES.items() if key in found]
    return {"figures": figures} if figures else None


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
    keys = [key for key in _DRAWN if key in table and key not in _SIZES]
    if len(keys) < 2:
        keys += [key for key in _SIZES if key in table and not (keys and key == "voxels")]
    charts = [chart for key in keys if (chart := _distribution(whole, key)) is not None]
    return {"whole": len(whole), "cut": len(table) - len(whole), "charts": charts} if charts else None


def whole_instances(table: DataFrame) -> DataFrame:
    """The rows that the border does not cut."""
    return table[~table["touches_border"].astype(bool)] if "touches_border" in table else table


def _distribution(table: DataFrame, key: str) -> tuple[str, str, str] | None:
    """A figure of one column, its name, and what is said of it; None where there is too little to draw."""
    (name, unit, scale), log = column_label(key), key in _LOGARITHMIC
    values = table[key].to_numpy(float, na_value=np.nan) / scale
    values = np.sort(values[np.isfinite(values)])
    values = values[values > 0] if log else values
    if len(values) < _LEAST or values[0] == values[-1]:
        return None
    quarter, median, three = (number(float(v), 3) for v in np.percentile(values, (25, 50, 75)))
    after = f" {unit}" if unit else ""
    said = f"median {median}{after}, middle half {quarter} to {three}{after}"
    return svg(distribution_figure(values, name, unit, log)), name, said
