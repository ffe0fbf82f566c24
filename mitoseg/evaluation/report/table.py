"""The table of measurements: to read, to sort, and to take along as a file."""

from __future__ import annotations

import numpy as np
from pandas import DataFrame

from mitoseg.evaluation.report.markup import Html, data_block, data_uri, element, join, number
from mitoseg.tables import frame_csv

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
