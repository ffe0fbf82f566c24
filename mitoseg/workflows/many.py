r"""Which volumes ``input=`` means, where their results go, and ``summary.csv``, the outcome for each volume.

    input=a.tif                      one volume                        output=a.zarr
    input=[a.tif,b.tif]              each of them                      output=FOLDER
    input="data/*.tif"               each path that matches            output=FOLDER
    input=data                       a folder: see `volumes_in`        output=FOLDER, or one volume

A path that exists is taken literally, whatever characters it contains.
"""

from __future__ import annotations

import csv
import fnmatch
import glob
import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import tifffile

from mitoseg.errors import UserError
from mitoseg.storage import write_text
from mitoseg.tables import as_written, to_csv
from mitoseg.volumes import images, tiff
from mitoseg.volumes.opening import container_format, format_of, place, split_path, stored_in
from mitoseg.volumes.stored import opening

NAME = "summary.csv"

DONE, FAILED, WAITING = "done", "failed", "waiting"


@dataclass
class Row:
    """One volume; ``seconds`` excludes earlier attempts, ``foreground`` is the fraction of mitochondrion voxels.

    ``command`` describes, as JSON, what made the existing output: options, checkpoint, and the state of the input.
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
    """The rows of an earlier run by output name; none if there is no table, or not one of ours."""
    names = [f.name for f in fields(Row)]
    try:
        text = (folder / NAME).read_bytes().decode(errors="surrogateescape")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if reader.fieldnames != names:
            return {}
        rows = [Row(**{name: as_written(line[name] or "") for name in names}) for line in reader]
    except (OSError, csv.Error):
        return {}
    for row in rows:
        with suppress(ValueError, RecursionError):
            if isinstance(json.loads(row.command), dict):
                continue
        row.command = ""
    return {Path(row.output).name: row for row in rows}


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Write the table atomically."""
    write_text(folder / NAME, to_csv([f.name for f in fields(Row)], map(astuple, rows)))


def plan_rows(given: str | Sequence[str], output: str, suffix: str) -> list[Row] | None:
    """The volumes that ``input=`` names and their outputs in the folder ``output=``; None for a single volume."""
    inputs = _several(given)
    if inputs is None:
        return None
    folder = Path(output)
    if format_of(output) is not None:
        raise UserError("several volumes need a folder for their results", output, "give output=FOLDER")
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError("the output of several volumes is not a folder", output, "choose another name")
    place(f"x{suffix}" if suffix.startswith(".") else suffix or "x")  # refuses an unknown suffix
    if not suffix.startswith(".") or "/" in suffix or os.sep in suffix:
        what = "the suffix of the outputs begins with a dot and is not a path"
        raise UserError(what, suffix, "give for instance suffix=.zarr")
    rows = [Row(path, os.path.join(output, result_name(path) + suffix)) for path in inputs]
    seen: dict[str, Row] = {}
    for row in rows:
        other = seen.setdefault(row.output.lower(), row)  # some file systems do not tell A from a
        if other is not row:
            what = f"two volumes would be written to {row.output}, {other.input} and"
            raise UserError(what, row.input, "rename one of them, or predict it alone")
    # results that the same command would read as inputs the next time
    place_of = Path(os.path.realpath(output))
    if isinstance(given, str) and Path(given).is_dir():
        if Path(os.path.realpath(given)) in (place_of, *place_of.parents):
            raise UserError("the output folder is in, or is, the folder of inputs", output, "choose another folder")
    elif isinstance(given, str):
        for path in (output, *(row.output for row in rows)):
            if fnmatch.fnmatch(os.path.abspath(path), os.path.abspath(given)):
                what = f"the output {path} matches the pattern of the inputs"
                raise UserError(what, given, "choose another folder")
    return rows


def _several(given: str | Sequence[str]) -> list[str] | None:
    if not isinstance(given, str):
        if not all(isinstance(path, str) and path for path in given):
            raise UserError("input is not a list of paths", list(given), "give input=[a.tif,b.tif]")
        return list(given)
    if Path(given).is_dir() and container_format(given) is None:
        return volumes_in(Path(given))
    if glob.has_magic(given) and not os.path.lexists(stored_in(given)):
        found = sorted(glob.glob(given, recursive=True), key=images.natural_key)
        if not found and ("*" in given or "?" in given):
            raise UserError("no file or folder matches", given, "check the pattern")
        return found or None
    return None


def volumes_in(folder: Path) -> list[str] | None:
    """The volumes in a folder of volumes; None if the folder is itself a volume.

    A folder is one volume if it holds slices: png files, or tif files of one image each. It is a folder of volumes if
    it holds tif files of several images each or volumes of other formats, or no files of images but folders of slices.
    """
    seen = (path for path in folder.iterdir() if not path.name.startswith("."))
    names = sorted(seen, key=lambda path: images.natural_key(path.name))
    slices = [p for p in names if p.is_file() and p.suffix.lower() in images.SUFFIXES]
    stacks = [p for p in slices if p.suffix.lower() in tiff.SUFFIXES and _is_stack(p)]
    others = []  # neither tifs nor folders of slices
    for path in names:
        found = None if path.is_dir() else format_of(str(path))
        if (path.is_dir() and container_format(str(path)) is not None) or (found and not found[0].pictures):
            others.append(path)
    single = len(slices) - len(stacks)
    if single and (stacks or others):
        what = f"the folder holds {single} single slices beside {len(stacks) + len(others)} volumes, such as"
        remedy = f"name those you mean: input=[{(stacks + others)[0]},...] or input={str(folder / '*.tif')!r}"
        raise UserError(what, (stacks + others)[0].name, remedy)
    if single:
        return None
    inner = [p for p in names if p.is_dir() and container_format(str(p)) is None and _holds_slices(p)]
    volumes = sorted([*stacks, *others, *inner], key=lambda p: images.natural_key(p.name))
    if not volumes and not _holds_slices(folder):
        raise UserError("the folder holds no volume", str(folder), "give a folder of slices or of volumes, or a file")
    return [str(path) for path in volumes] or None


def _is_stack(file: Path) -> bool:
    """Whether a tif holds more than one image."""
    with opening(str(file)), tifffile.TiffFile(file) as tif:
        return len(tif.pages) > 1 or int((tif.imagej_metadata or {}).get("images", 1)) > 1


def _holds_slices(folder: Path) -> bool:
    known = (*images.SUFFIXES, *images.PICTURES)
    return any(p.suffix.lower() in known and not p.name.startswith(".") for p in folder.iterdir())


def result_name(path: str) -> str:
    """The name of a volume's result, without its suffix.

    >>> result_name("data/a.nii.gz"), result_name("b.ome.zarr"), result_name("c.h5:/raw/em"), result_name("slices.v2/")
    ('a', 'b', 'c_raw_em', 'slices.v2')
    """
    parts = split_path(path)
    name, found = Path(parts[0]).name, format_of(parts[0])
    name = name if found is None else name[: -len(found[1])]
    return "_".join([name, *filter(None, parts[1].split("/"))])
