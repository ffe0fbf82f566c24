r"""Which volumes ``input=`` means, and where their results go.

    input=a.tif                      one volume                        output=a.zarr
    input=[a.tif,b.tif]              each of them                      output=FOLDER
    input="data/*.tif"               each path that matches            output=FOLDER
    input=data                       a folder: see `kind_of_folder`    output=FOLDER, or one volume

A path that exists is taken as it is, whatever characters are in it.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tifffile

from mitoseg.errors import UserError
from mitoseg.volumes import hdf5, images, n5, tiff, zarrs
from mitoseg.volumes.opening import DATASET_SUFFIXES, format_of, stored_in
from mitoseg.volumes.reading import opening
from mitoseg.volumes.writing import place


@dataclass(frozen=True)
class Job:
    """One volume to predict.

    Attributes:
        input: Where it lies.
        output: Where its result goes.
    """

    input: str
    output: str


def plan_jobs(given: str | Sequence[str], output: str, suffix: str) -> list[Job] | None:
    """The volumes of a run over several; None where ``input=`` is one volume.

    Args:
        given: ``input=``.
        output: ``output=``, of several volumes a folder.
        suffix: Of their results.

    Raises:
        UserError: There are none, two would get one name, the folder is ambiguous, or the results would lie among
            what is read.
    """
    inputs = _several(given)
    if inputs is None:
        return None
    for path in (*inputs, output):
        if "${" in path:
            raise UserError("a path with ${ in it cannot be told from an interpolation", path, "rename it")
    _check_folder(output)
    place(f"x{suffix}" if suffix.startswith(".") else suffix or "x")  # refuses an unknown suffix
    if not suffix.startswith("."):
        raise UserError("the suffix of the outputs begins with a dot", suffix, "give for instance suffix=.zarr")
    jobs = [Job(path, os.path.join(output, result_name(path) + suffix)) for path in inputs]
    _check_names(jobs)
    _check_apart(given, output, jobs)
    return jobs


def _several(given: str | Sequence[str]) -> list[str] | None:
    if not isinstance(given, str):
        if not given or not all(isinstance(path, str) and path for path in given):
            raise UserError("input is no list of paths", list(given), "give input=[a.tif,b.tif]")
        return list(given)
    if Path(given).is_dir() and not _is_container(given):
        return volumes_in(Path(given))
    if glob.has_magic(given) and not os.path.lexists(stored_in(given)):
        found = sorted(glob.glob(given, recursive=True), key=images.natural_key)
        if not found and ("*" in given or "?" in given):
            raise UserError("no file or folder matches", given, "check the pattern")
        return found or None
    return None


def volumes_in(folder: Path) -> list[str] | None:
    """The volumes in a folder of volumes; None where the folder is itself one.

    A folder is one volume if it holds slices: png files, or tif files of one image each. It is a folder of volumes if
    it holds tif files of several images each or volumes of other formats, or no files of images but folders of slices.

    Raises:
        UserError: It is both, or it holds no volume.
    """
    names = sorted(
        (p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: images.natural_key(p.name)
    )
    slices = [p for p in names if p.is_file() and p.suffix.lower() in images.SUFFIXES]
    stacks = [p for p in slices if p.suffix.lower() in tiff.SUFFIXES and _is_stack(p)]
    others = [p for p in names if _is_other(p)]
    single = len(slices) - len(stacks)
    if single and (stacks or others):
        what = f"the folder holds {single} single slices beside {len(stacks) + len(others)} volumes, such as"
        remedy = f"name what is meant: input=[{(stacks + others)[0]},...] or input={str(folder / '*.tif')!r}"
        raise UserError(what, (stacks + others)[0].name, remedy)
    if single:
        return None
    inner = [p for p in names if p.is_dir() and not _is_container(str(p)) and _holds_slices(p)]
    found = sorted([*stacks, *others, *inner], key=lambda p: images.natural_key(p.name))
    if not found and _holds_slices(folder):
        return None
    if not found:
        raise UserError("the folder holds no volume", str(folder), "give a folder of slices or of volumes, or a file")
    return [str(path) for path in found]


def _is_container(path: str) -> bool:
    """A folder that is a volume of its own: of Zarr or N5."""
    return zarrs.is_zarr(path) or n5.is_n5(path)


def _is_other(path: Path) -> bool:
    """A volume that is neither a tif nor a folder of slices."""
    if path.is_dir():
        return _is_container(str(path))
    found = format_of(str(path))
    return found is not None and found[1] not in (*tiff.SUFFIXES, *images.SUFFIXES, *images.PICTURES)


def _is_stack(file: Path) -> bool:
    """Whether a tif holds more than one image."""
    with opening(str(file)), tifffile.TiffFile(file) as tif:
        counted = len(tif.pages) if len(tif.pages) > 1 else int((tif.imagej_metadata or {}).get("images", 1))
        return counted > 1


def _holds_slices(folder: Path) -> bool:
    known = (*images.SUFFIXES, *images.PICTURES)
    return any(p.suffix.lower() in known and not p.name.startswith(".") for p in folder.iterdir())


def result_name(path: str) -> str:
    """The name of a volume's result, without its suffix.

    >>> result_name("data/a.nii.gz"), result_name("b.ome.zarr"), result_name("c.h5:/raw/em"), result_name("slices.v2/")
    ('a', 'b', 'c_raw_em', 'slices.v2')
    """
    parts = hdf5.split_dataset(path, DATASET_SUFFIXES) or (path, "")
    name, found = Path(parts[0]).name, format_of(parts[0])
    name = name if found is None else name[: -len(found[1])]
    name = name[:-4] if name.lower().endswith(".ome") else name
    return "_".join([name, *filter(None, parts[1].split("/"))])


def _check_folder(output: str) -> None:
    folder = Path(output)
    if format_of(output) is not None:
        raise UserError("several volumes need a folder for their results", output, "give output=FOLDER")
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError("the output of several volumes is no folder", output, "choose another name")


def _check_names(jobs: Sequence[Job]) -> None:
    """Refuse two volumes that would be written into one file; some file systems do not tell A from a."""
    seen: dict[str, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.output.lower(), job)
        if other is not job:
            what = f"two volumes would be written to {job.output}, {other.input} and"
            raise UserError(what, job.input, "rename one of them, or predict it alone")


def _check_apart(given: str | Sequence[str], output: str, jobs: Sequence[Job]) -> None:
    """Refuse results that the same command would read as inputs the next time."""
    folder = Path(os.path.realpath(output))
    if isinstance(given, str) and Path(given).is_dir():
        source = Path(os.path.realpath(given))
        if folder == source or source in folder.parents:
            raise UserError("the output folder is or lies in the folder of inputs", output, "choose another folder")
    elif isinstance(given, str):
        for path in (output, *(job.output for job in jobs)):
            if fnmatch.fnmatch(os.path.abspath(path), os.path.abspath(given)):
                what = f"the output {path} matches the pattern of the inputs"
                raise UserError(what, given, "choose another folder")
