r"""Several volumes in one run: one model, one result each, and a table of what became of them.

``summary.csv``: what became of each volume of a run over several.

Which volumes ``input=`` means, and where their results go.

    input=a.tif                      one volume                        output=a.zarr
    input=[a.tif,b.tif]              each of them                      output=FOLDER
    input="data/*.tif"               each path that matches            output=FOLDER
    input=data                       a folder: see `kind_of_folder`    output=FOLDER, or one volume

A path that exists is taken as it is, whatever characters are in it.
"""

from __future__ import annotations

import csv
import fnmatch
import glob
import io
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import tifffile
from omegaconf import DictConfig, OmegaConf

from mitoseg.engines import Engine, EngineError, one_at_a_time
from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.progress import Tell
from mitoseg.storage import changes, explain, held, plain, remove, write_text
from mitoseg.tables import as_written, to_csv
from mitoseg.volumes import Volume, images, open_volume, tiff
from mitoseg.volumes.opening import container_format, format_of, place, split_path, stored_in
from mitoseg.volumes.predicted import KINDS, Decision, decide
from mitoseg.volumes.staging import holds_finished, stage_folder
from mitoseg.volumes.stored import opening
from mitoseg.workflows.session import Session

log = logging.getLogger(__name__)

_BLOCK = (64, 512, 512)


def predict_many(
    cfg: DictConfig,
    session: Session,
    jobs: Sequence[Job],
    *,
    open_input: Callable[[DictConfig], Volume],
    identity: Callable[[DictConfig, Session, Volume], Mapping[str, Any]],
    predict: Callable[[DictConfig, Volume, Callable[[], None]], object],
    tell: Tell,
) -> None:
    """Predict each volume; one that fails does not stop the others, one that is done already is left alone.

    Args:
        cfg: Of the run; each volume gets it with its own input and output.
        session: What they share.
        jobs: The volumes.
        open_input: Opens the input of a config.
        identity: What makes a prediction another one than the next.
        predict: Predicts one, and calls a function when it is written.
        tell: Takes a line about what became of all.

    Raises:
        UserError: Some have failed, or another process works in the folder.
        EngineError: The engine is gone, and with it all that was to come.
    """
    folder = Path(cfg.output)
    with held(folder / ".lock", "another process is writing into this folder"):
        before = read_rows(folder)
        known = {Path(job.output).name: Row(job.input, job.output) for job in jobs}
        rows = [  # the folder may have been copied, or be seen from elsewhere, since its table was written
            replace(before.get(name, row), input=row.input, output=row.output) for name, row in known.items()
        ]
        others = [row for name, row in before.items() if name not in known and (row.command or row.status == DONE)]
        skipped = 0
        for number, (job, row) in enumerate(zip(jobs, rows, strict=True)):
            own = OmegaConf.merge(cfg, {"input": job.input, "output": job.output})
            assert isinstance(own, DictConfig)
            log.info("volume %d of %d: %s", number + 1, len(jobs), job.input)
            try:
                source = open_input(own)
                command = plain(identity(own, session, source))
                if _is_done(row, command, overwrite=cfg.overwrite):
                    row.status, row.error = DONE, ""
                    skipped += 1
                    continue
                rows[number] = row = Row(job.input, job.output, voxels=str(source.box.size))
                write_rows(folder, [*rows, *others])  # an output that is replaced is no longer that of its row
                start = time.monotonic()

                def note(row: Row = row, start: float = start, command: object = command) -> None:
                    row.seconds = f"{time.monotonic() - start:.1f}"
                    row.foreground = _foreground(row.output, session.engine)
                    row.status, row.command = DONE, json.dumps(command, sort_keys=True)
                    write_rows(folder, [*rows, *others])

                predict(own, source, note)
            except EngineError:
                raise
            except Exception as error:
                row.status, row.error = FAILED, _told(error)
                log.error("%s", row.error)
            finally:
                write_rows(folder, [*rows, *others])
    remove(folder / ".lock")
    _conclude(folder, rows, skipped, tell)


def _conclude(folder: Path, rows: Sequence[Row], skipped: int, tell: Tell) -> None:
    """Say what became of all.

    Raises:
        UserError: Some have failed.
    """
    failed = [row for row in rows if row.status == FAILED]
    done = sum(row.status == DONE for row in rows)
    again = f", {skipped} of them before" if skipped else ""
    tell(f"{done} of {len(rows)} volumes are done{again}; table in {folder / NAME}")
    if failed:
        names = ", ".join(row.input for row in failed[:5]) + (", ..." if len(failed) > 5 else "")
        remedy = f"{folder / NAME} says why; the same command again does these alone"
        raise UserError(f"{len(failed)} of {len(rows)} volumes have failed", names, remedy)


def _told(error: Exception) -> str:
    """The line for a failure; a bug also leaves its traceback in the log."""
    line = explain(error)
    if line is None:
        log.error("this is a bug in mitoseg; please report it with these lines", exc_info=error)
        line = f"a bug: {type(error).__name__}: {error}"
    return " ".join(line.split())


def _is_done(row: Row, command: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether a volume's output is there, made by the same command from the same input.

    Raises:
        UserError: It was made by another one, and may not be replaced.
    """
    if not row.command or not os.path.lexists(row.output):
        return False
    before = json.loads(row.command)
    if before == command:
        if holds_finished(row.output):
            remove(stage_folder(row.output))  # a kill came between the row and the end
        return True
    if not overwrite:
        remedy = "give overwrite=true, or another output folder"
        raise UserError(f"the output is that of another command ({changes(before, command)})", row.output, remedy)
    return False


@dataclass(frozen=True)
class _Counting:
    """Counts the foreground voxels of a box.

    Attributes:
        volume: A result.
        decision: What its values mean.
    """

    volume: Volume
    decision: Decision

    def __call__(self, box: Box) -> int:
        values = self.volume.read(box)
        with one_at_a_time():
            return int(self.decision.foreground(values).sum())


def _foreground(output: str, engine: Engine) -> str:
    """Share of a result's voxels that are foreground; nothing where it says nothing of it."""
    volume = open_volume(output)
    if volume.info.metadata.get("kind") not in KINDS:
        return ""
    counts: list[int] = []
    engine.map(_Counting(volume, decide(volume)), tiles(volume.box, _BLOCK), lambda _, count: counts.append(count))
    return f"{sum(counts) / volume.box.size:.6f}"


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
        text = (folder / NAME).read_bytes().decode(errors="surrogateescape")
    except OSError:
        return {}
    names = [f.name for f in fields(Row)]
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if reader.fieldnames != names:
            return {}
        rows = [Row(**{name: as_written(line[name] or "") for name in names}) for line in reader]
    except csv.Error:
        return {}
    for row in rows:
        row.command = row.command if _is_object(row.command) else ""
    return {Path(row.output).name: row for row in rows}


def _is_object(text: str) -> bool:
    """Whether this is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Write the table, whole or not at all."""
    write_text(folder / NAME, to_csv([f.name for f in fields(Row)], map(astuple, rows)))


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
    if Path(given).is_dir() and container_format(given) is None:
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
    inner = [p for p in names if p.is_dir() and container_format(str(p)) is None and _holds_slices(p)]
    found = sorted([*stacks, *others, *inner], key=lambda p: images.natural_key(p.name))
    if not found and _holds_slices(folder):
        return None
    if not found:
        raise UserError("the folder holds no volume", str(folder), "give a folder of slices or of volumes, or a file")
    return [str(path) for path in found]


def _is_other(path: Path) -> bool:
    """A volume that is neither a tif nor a folder of slices."""
    if path.is_dir():
        return container_format(str(path)) is not None
    found = format_of(str(path))
    return found is not None and not found[0].pictures


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
    parts = split_path(path)
    name, found = Path(parts[0]).name, format_of(parts[0])
    name = name if found is None else name[: -len(found[1])]
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
