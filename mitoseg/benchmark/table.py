"""``table.md``, ``table.csv`` and ``table.html``, and the same table for the terminal."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mitoseg.benchmark.rows import COLUMNS, Row
from mitoseg.storage import write_text
from mitoseg.tables import to_csv, to_markdown

EMPTY = "-"
PICTURE = "methods.png"
KEY = "green found, orange false, blue missed"
_STYLE = """body {font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem}
table {border-collapse: collapse; font-variant-numeric: tabular-nums}
th, td {border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: right; vertical-align: top}
th:first-child, td:first-child, td:nth-child(2), td:last-child {text-align: left}
tr.published td {color: #666; font-style: italic}
img {max-width: 100%}"""


@dataclass(frozen=True)
class Page:
    """A table with what is said around it.

    Attributes:
        rows: Of methods and of published figures.
        title: Above.
        notes: Sentences below.
        picture: Whether there is one to show.
    """

    rows: Sequence[Row]
    title: str
    notes: Sequence[str] = ()
    picture: bool = False

    def columns(self) -> dict[str, tuple[str, str]]:
        """Head and column of what is shown, by the kind of its cells: text, percent, seconds or bytes."""
        bands = sorted({row["band"] for row in self.rows if row["band"] is not None})
        band = f"without {bands[0]:g} voxels at the border" if bands else "without the border"
        shown = {
            "method": ("method", "text"),
            "title": ("what", "text"),
            "jaccard_foreground": ("fg JAC", "percent"),
            "jaccard_background": ("bg JAC", "percent"),
            "jaccard_mean": ("mean JAC", "percent"),
            "band_jaccard_foreground": (f"fg JAC {band}", "percent"),
            "band_jaccard_mean": (f"mean JAC {band}", "percent"),
        }
        crops = {row["crop"] for row in self.rows if row["crop"]}
        if crops:
            where = crops.pop()
            shown["crop_jaccard_foreground"] = (f"fg JAC in {where}", "percent")
            shown["crop_jaccard_mean"] = (f"mean JAC in {where}", "percent")
        if any(row["jaccard_published"] is not None for row in self.rows):
            shown["jaccard_published"] = ("JAC as published", "percent")
        return shown | {
            "training_seconds": ("training", "seconds"),
            "prediction_seconds": ("prediction", "seconds"),
            "peak_memory_bytes": ("peak memory", "bytes"),
            **(
                {"device_memory_bytes": ("peak device memory", "bytes")}
                if any(row["device_memory_bytes"] for row in self.rows)
                else {}
            ),
            "protocol": ("protocol", "text"),
        }

    def cells(self) -> list[list[str]]:
        """What is shown, head first."""
        columns = self.columns()
        body = [[text(row[key], kind) for key, (_, kind) in columns.items()] for row in self.rows]
        return [[head for head, _ in columns.values()], *body]


def text(value: Any, kind: str) -> str:  # noqa: ANN401 (a cell)
    """One cell.

    >>> text(0.76249, "percent"), text(95.0, "seconds"), text(1.5e9, "bytes"), text(None, "percent")
    ('76.2', '95 s', '1.50 GB', '-')
    """
    if value is None or value == "":
        return EMPTY
    if kind == "percent":
        return f"{100 * value:.1f}"
    if kind == "seconds":
        return f"{value:.3g} s" if value < 100 else f"{value / 60:.1f} min"
    return f"{value / 1e9:.2f} GB" if kind == "bytes" else str(value)


def write_tables(folder: Path, page: Page) -> None:
    """Write the three files, each whole or not at all.

    Raises:
        UserError: One cannot be written.
    """
    write_text(folder / "table.md", markdown(page))
    write_text(folder / "table.csv", as_csv(page.rows))
    write_text(folder / "table.html", as_html(page))


def markdown(page: Page) -> str:
    """The page as Markdown."""
    picture = [f"![The same crop under every method: {KEY}]({PICTURE})", ""] if page.picture else []
    return "\n".join(
        [f"# {page.title}", "", to_markdown(page.cells()), "", *picture, *(f"- {note}" for note in page.notes), ""]
    )


def as_csv(rows: Sequence[Row]) -> str:
    """All that is known, in plain numbers."""
    return to_csv(COLUMNS, ([row[column] for column in COLUMNS] for row in rows))


def as_html(page: Page) -> str:
    """The page as HTML that needs nothing but the picture beside it."""
    head, *body = ([html.escape(cell) for cell in cells] for cells in page.cells())
    rows = [
        f'<tr class="{html.escape(str(row["source"]))}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for row, cells in zip(page.rows, body, strict=True)
    ]
    title, key = html.escape(page.title), html.escape(KEY)
    figure = f'<figure><img src="{PICTURE}" alt="{key}"><figcaption>{key}</figcaption></figure>'
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>',
        f"<h1>{title}</h1><table><thead><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr></thead>",
        "<tbody>",
        *rows,
        "</tbody></table>",
        *([figure] if page.picture else []),
        "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in page.notes) + "</ul></html>",
    ]
    return "\n".join(parts) + "\n"


def terminal(page: Page) -> Table:
    """The methods as they fit on a terminal: scores of one kind in one column, published figures in a line below."""
    shown = {
        "method": ("text", ("method",)),
        "JAC\nfg, mean": ("percent", ("jaccard_foreground", "jaccard_mean")),
        "no border\nfg, mean": ("percent", ("band_jaccard_foreground", "band_jaccard_mean")),
        "crop\nfg, mean": ("percent", ("crop_jaccard_foreground", "crop_jaccard_mean")),
        "train": ("seconds", ("training_seconds",)),
        "predict": ("seconds", ("prediction_seconds",)),
        "memory": ("bytes", ("peak_memory_bytes",)),
    }
    published = [f"{row['method']} {text(row['jaccard_published'], 'percent')}" for row in published_of(page.rows)]
    caption = f"{', '.join(published)}: class and voxels not stated" if published else None
    table = Table(title=escape(page.title), title_justify="left", caption=caption, caption_justify="left")
    methods = [row for row in page.rows if row["source"] != "published"]
    heads = [head for head, (_, keys) in shown.items() if any(row[keys[0]] is not None for row in methods)]
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for row in methods:
        cells = [[text(row[key], kind) for key in keys] for kind, keys in (shown[head] for head in heads)]
        table.add_row(*(escape(EMPTY if set(cell) == {EMPTY} else ", ".join(cell)) for cell in cells))
    return table


def published_of(rows: Sequence[Row]) -> list[Row]:
    """The rows of published figures."""
    return [row for row in rows if row["source"] == "published"]
