"""Trained methods as files: arrays and a line of JSON in an ``.npz``, which holds no code and runs none."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.storage import atomic_output, plain

FORMAT = "mitoseg classical 1"

_DAMAGED = (
    *(
        OSError,
        ValueError,
        LookupError,
        EOFError,
        AttributeError,
        TypeError,
        RuntimeError,
        ArithmeticError,
        MemoryError,
    ),
    *(zipfile.BadZipFile, zlib.error),
)
"""What reading an archive raises that is damaged, or that claims more than there is."""

Arrays = dict[str, npt.NDArray[Any]]


def save_arrays(
    path: Path | str, kind: str, facts: Mapping[str, object], arrays: Arrays, *, overwrite: bool = False
) -> None:
    """Write a method's file, which appears only when it is whole.

    Args:
        path: Of the file, ``.npz`` by habit.
        kind: Name of the method's class.
        facts: Whatever JSON can hold.
        arrays: By name, none of objects.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        UserError: As `mitoseg.storage.atomic_output`.
    """
    text = json.dumps({"format": FORMAT, "kind": kind, **plain(facts)})
    with atomic_output(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, facts=np.array(text), **arrays)


def load_arrays(path: Path | str, kind: str) -> tuple[dict[str, Any], Arrays]:
    """Read a method's file.

    Args:
        path: Of the file.
        kind: Name of the class that it must be of.

    Returns:
        Its facts and its arrays.

    Raises:
        UserError: There is no such file, it is damaged, or it is of another method.
    """
    remedy = "give a file that was saved by this method"
    try:
        # opened here, because np.load leaves a damaged file open
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(str(arrays.pop("facts")))
    except FileNotFoundError as error:
        raise UserError("no such file", str(path), "check the path") from error
    except _DAMAGED as error:
        raise UserError("the file holds no trained method", str(path), remedy) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or facts.get("kind") != kind:
        found = facts.get("kind") if isinstance(facts, dict) else None
        raise UserError(f"the file holds {found or 'something else'}, not {kind}", str(path), remedy)
    return facts, arrays
