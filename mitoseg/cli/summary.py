"""``summary.csv``: what became of each volume of a run over several."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from mitoseg.storage import write_text
from mitoseg.tables import as_written, to_csv

NAME = "summary.csv"
DONE, FAILED, WAITING = "done", "failed", "waiting"


@dataclass
class Row:
    """One volume.

    Attributes:
        input: Where it lies.
        output: Where its result goes.
        status: ``done``, ``failed`` or ``waiting``.
        voxels: Of the volume; empty before it was opened.
        seconds: That its prediction took, without earlier attempts.
        foreground: Share of voxels that are mitochondria.
        error: Why it failed.
        command: What made the output that is there, as JSON: options, checkpoint, and the state of the input. Empty
            where that is not known.
    """

    input: str
    output: str
    status: str = WAITING
    voxels: str = ""
    seconds: str = ""
    foreground: str = ""
    error: str = ""
    command: str = ""


def read_rows(folder: Path) -> dict[str, Row]:
    """The rows of an earlier run by their outputs' names; none where there is no table, or another one."""
    try:
        text = (folder / NAME).read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return {}
    names = [f.name for f in fields(Row)]
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if reader.fieldnames != names:
        return {}
    rows = [Row(**{name: as_written(line[name] or "") for name in names}) for line in reader]
    for row in rows:
        row.command = row.command if row.command.startswith("{") else ""
    return {Path(row.output).name: row for row in rows}


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Write the table, whole or not at all."""
    write_text(folder / NAME, to_csv([f.name for f in fields(Row)], map(astuple, rows)))
