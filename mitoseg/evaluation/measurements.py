"""Tables of measurements, one row a mitochondrion and one file a volume, read by condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mitoseg.errors import UserError
from mitoseg.tables import SUFFIXES, read_csv

Floats = npt.NDArray[np.float64]

CUT = "touches_border"
"""The column that says whether the border of the volume cuts an object."""
_NO_MEASURE = ("id", "instance", "label", "voxels", "index", "Unnamed: 0", CUT)
_PLACES = ("centroid", "box_", "bbox", "start", "stop", "position")
_CUT_MATTERS_NOT = ("grey", "gray", "intensity", "probability", "uncertainty", "score", "cristae", "confidence")


@dataclass(frozen=True)
class Measurements:
    """The tables of one condition.

    Attributes:
        name: Of the condition.
        paths: A file for each volume.
        tables: What they hold.
    """

    name: str
    paths: tuple[str, ...]
    tables: tuple[pd.DataFrame, ...]

    def values(self, column: str, *, whole_only: bool) -> tuple[list[Floats], int, int]:
        """Finite values of a column by volume, how many cut objects were left out, and how many missing values."""
        found, cut, missing = [], 0, 0
        for table in self.tables:
            values = table[column].to_numpy(np.float64, na_value=np.nan)
            if whole_only and CUT in table:
                outside = table[CUT].astype(bool).to_numpy()
                cut, values = cut + int(outside.sum()), values[~outside]
            finite = np.isfinite(values)
            missing += int((~finite).sum())
            found.append(values[finite])
        return found, cut, missing


def read_groups(groups: Mapping[str, Sequence[Path | str]]) -> list[Measurements]:
    """Read the tables of every condition.

    Args:
        groups: Files (``.csv`` or ``.parquet``) by the name of the condition; a file is one volume or animal.

    Raises:
        UserError: Fewer than two conditions, one without files, a file that is in two places, missing, no table,
            empty, or without the true or false of ``touches_border``.
    """
    if len(groups) < 2:
        raise UserError(
            "a comparison needs two conditions", list(groups), "give compare={control:[a.csv],treated:[b.csv]}"
        )
    seen: dict[Path, str] = {}
    read = []
    for name, paths in groups.items():
        files = [paths] if isinstance(paths, str | Path) else list(paths)
        if not files:
            raise UserError("a condition has no files", str(name), "give it one or more tables")
        for path in files:
            where = Path(path).resolve()
            if where in seen:
                raise UserError(
                    f"a table is given twice, in {seen[where]} and {name}", str(path), "give each volume once"
                )
            seen[where] = str(name)
        read.append(Measurements(str(name), tuple(map(str, files)), tuple(_read(Path(path)) for path in files)))
    return read


def choose_columns(groups: Sequence[Measurements], wanted: Sequence[str] | None) -> list[str]:
    """The numeric columns to compare.

    Args:
        groups: Of `read_groups`.
        wanted: Names; None: all numeric columns that every table has, without numbers, boxes and places of objects.

    Raises:
        UserError: A table lacks a column or it holds no numbers; or there is none to compare.
    """
    tables = [(path, table) for group in groups for path, table in zip(group.paths, group.tables, strict=True)]
    if wanted is None:
        first = tables[0][1]
        found = [str(c) for c in first if _is_measure(str(c)) and all(_numeric(t, str(c)) for _, t in tables)]
        if not found:
            raise UserError("the tables share no measure", tables[0][0], "give tables of measure.py")
        return found
    columns = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    for column in columns:
        for path, table in tables:
            if not _numeric(table, column):
                what = f"a table has no numbers in the column {column!r}"
                raise UserError(what, path, f"choose of {', '.join(map(str, table.columns))}")
    if not columns:
        raise UserError("no column to compare", None, "give columns=[volume_nm3] or leave it out for all")
    return columns


def cut_matters(column: str) -> bool:
    """Whether a cut object's value is another one than the whole object's would be: shape, not grey levels.

    >>> cut_matters("volume_nm3"), cut_matters("grey_mean")
    (True, False)
    """
    return not column.startswith(_CUT_MATTERS_NOT)


def _is_measure(column: str) -> bool:
    return column not in _NO_MEASURE and not any(word in column for word in _PLACES)


def _numeric(table: pd.DataFrame, column: str) -> bool:
    if column not in table:
        return False
    kind = table[column]
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix.lower() not in SUFFIXES:
        raise UserError("unknown kind of table", str(path), "give a .csv or .parquet that measure.py wrote")
    if not path.is_file():
        raise UserError("no such table", str(path), "check the path")
    try:
        table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own errors are among them
        raise UserError("the table cannot be read", str(path), "write it again with measure.py") from error
    if table.empty:
        raise UserError("the table has no rows", str(path), "leave the volume out, or check its instances")
    if CUT in table:
        table[CUT] = _true_or_false(table[CUT], path)
    return table


def _true_or_false(column: pd.Series, path: Path) -> pd.Series:
    words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    told = column.astype(str).str.lower().map(words)
    if told.isna().any():
        raise UserError(f"{CUT} is neither true nor false", str(path), "write the table again with measure.py")
    return told.astype(bool)
