"""Tables as files: CSV or Parquet, by suffix, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mitoseg.errors import UserError
from mitoseg.storage import atomic_output

SUFFIXES = (".csv", ".parquet")


def check_suffix(path: Path) -> None:
    """Refuse a name that says no format.

    Raises:
        UserError: The suffix is not one of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError("cannot write a table of that kind", path.name, f"end its name with {' or '.join(SUFFIXES)}")


def write_table(path: Path, table: pd.DataFrame, *, overwrite: bool = False, digits: int | None = None) -> None:
    """Write a table.

    Args:
        path: Its suffix chooses the format.
        table: What is written, without its index.
        overwrite: Whether a file that exists may be replaced.
        digits: Of floats in CSV; None: all.

    Raises:
        UserError: As `mitoseg.storage.atomic_output` and `check_suffix`.
    """
    check_suffix(path)
    with atomic_output(path, overwrite=overwrite) as temporary:
        if path.suffix.lower() == ".csv":
            table.to_csv(
                temporary, index=False, float_format=None if digits is None else f"%.{digits}g", lineterminator="\n"
            )
        else:
            table.to_parquet(temporary, index=False, engine="pyarrow")
