"""Tables as files: CSV, Parquet and Markdown, whole or not at all.

A spreadsheet computes a cell such as ``=1+1``, and what it computes may have come with the name of somebody's file. In
CSV such text therefore begins with an apostrophe, which `read_csv` takes away; numbers stay numbers.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mitoseg.errors import UserError
from mitoseg.storage import atomic_output, write_text

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")
_COMPUTED = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four: full-width = + - @
_TAG = re.compile(r"<(?=[a-zA-Z/!?])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def check_suffix(path: Path) -> None:
    """Refuse a name that says no format."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError("cannot write a table of that kind", path.name, f"end its name with {' or '.join(SUFFIXES)}")


def write_table(path: Path, table: pd.DataFrame, *, overwrite: bool = False, digits: int | None = None) -> None:
    """Write a table without its index, as the suffix says; CSV with so many digits of floats (None: all)."""
    check_suffix(path)
    if path.suffix.lower() == ".csv":
        write_text(path, frame_csv(table, digits), overwrite=overwrite)
        return
    with atomic_output(path, overwrite=overwrite) as temporary:
        table.to_parquet(temporary, index=False, engine="pyarrow")


def frame_csv(table: pd.DataFrame, digits: int | None = None) -> str:
    """A data frame as CSV, without its index."""
    return to_csv(map(str, table.columns), table.itertuples(index=False, name=None), digits)


def to_csv(columns: Iterable[str], rows: Iterable[Iterable[object]], digits: int | None = None) -> str:
    r"""Rows as CSV, floats with so many digits (None: all); None and NaN are empty.

    >>> to_csv(["name", "x"], [["=cmd", -1.5], ["-1.5", None]])
    "name,x\n'=cmd,-1.5\n-1.5,\n"
    >>> to_csv(["a;=1"], [])
    '"a;=1"\n'
    """
    lines: list[str] = []
    end = ";\t\r\n"  # cells that hold one of these are put into quotes: elsewhere a semicolon separates cells
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator=end)
    writer.writerow([_cell(name, digits) for name in columns])
    writer.writerows([_cell(value, digits) for value in row] for row in rows)
    return "".join(f"{line.removesuffix(end)}\n" for line in lines)


def _cell(value: object, digits: int | None) -> object:
    if isinstance(value, str):
        return f"'{value}" if _COMPUTED.match(value) and not _NUMBER.fullmatch(value) else value
    if isinstance(value, float):
        return "" if math.isnan(value) else float(value) if digits is None else f"{value:.{digits}g}"
    return "" if type(value).__name__ in {"NAType", "NaTType"} else value  # of pandas


def as_written(cell: object) -> Any:  # noqa: ANN401 (what is not text stays as it is)
    """The text that a cell was written from.

    >>> as_written("'=cmd"), as_written("'quoted'"), as_written("''=cmd")
    ('=cmd', "'quoted'", "'=cmd")
    """
    return cell[1:] if isinstance(cell, str) and cell[:1] == "'" and _COMPUTED.match(cell) else cell


def read_csv(path: Path) -> pd.DataFrame:
    """A table that `write_table` has written as CSV, or any other."""
    import pandas as pd

    table = pd.read_csv(path)
    for name, column in table.items():
        if not pd.api.types.is_numeric_dtype(column):
            table[name] = column.map(as_written)
    return table.rename(columns=as_written)


def to_markdown(rows: Sequence[Sequence[str]]) -> str:
    r"""A table of Markdown, the first row its head; nothing in a cell is read as markup of tables or HTML.

    >>> print(to_markdown([["a|b"], ["<b>"]]))
    | a\|b |
    |---|
    | &lt;b> |
    """
    cells = [[_TAG.sub("&lt;", " ".join(cell.split())).replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])
