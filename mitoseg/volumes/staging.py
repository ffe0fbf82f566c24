r"""A volume that is written tile by tile and can be resumed, even after the process was killed.

A tile is listed as done after it is written, so at most the tiles in flight are computed again. The plan is removed
last: if the process is killed before that, the output already has its name and is not computed again.

.out.tif.unfinished/            owned by this user, not readable by others
    plan.json                   the command, what it decided, and a stamp of the result once that is complete
    tiles.zarr/                 one chunk with a checksum for each tile
    done.txt                    one line for each tile on disk
    converted/                  the output in its own format
    lock                        held while a process works here
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.storage import (
    changes,
    check_own_folder,
    explain_storage_error,
    is_storage_error,
    make_folders,
    move_into_place,
    plain,
    read_json,
    remove,
    write_json,
    write_text,
)
from mitoseg.volumes.base import Array, Volume, VolumeInfo
from mitoseg.volumes.opening import (
    VolumeWriter,
    check_volume_output,
    check_voxel_type,
    convert,
    create_volume,
    open_volume,
    place,
)
from mitoseg.volumes.stored import Tile
from mitoseg.volumes.zarrs import FORMAT as TILES
from mitoseg.volumes.zarrs import ZarrOutput, is_array, remove_partial

log = logging.getLogger(__name__)
PATIENCE = 30.0
"""Seconds for files written by other machines to appear here: network folders are refreshed with a delay."""


def stage_folder(path: str) -> Path:
    """The folder for an unfinished output."""
    file = place(path)[0]
    return file.with_name(f".{file.name}.unfinished")


def holds_finished(path: str) -> bool:
    """Whether an output is finished, and only the stage left by a killed command has to be removed."""
    whole = read_json(stage_folder(path) / "plan.json").get("whole")
    if not isinstance(whole, dict) or (stage_folder(path) / str(whole.get("result"))).exists():
        return False
    return _stamp(place(path)[0]) == whole.get("stamp")


def _stamp(path: Path) -> list[int] | None:
    """Size and time of a file, or of a Zarr folder's metadata file; unchanged by renaming."""
    with suppress(OSError):
        state = (path / "zarr.json" if path.is_dir() else path).stat()
        return [state.st_size, state.st_mtime_ns]
    return None


class StagedVolume:
    """See the module's docstring; a context manager that locks the stage against other processes.

    ``identity`` is what distinguishes this command from others, as plain data. If only ``volatile`` keys of it differ
    (files and versions), earlier results are out of date and discarded; if only ``finishing`` ones (the processing of
    the tiles, see `finish_as`), the tiles are kept. ``overwrite`` replaces an output, or an unfinished one of another
    command; ``view`` turns the lazy volume of the tiles into the one to output. ``decisions`` are what the command
    decided when it first ran, empty in a new stage; ``done`` are the tiles on disk; ``array`` is their Zarr array,
    with one chunk per tile, to which several processes may write.
    """

    def __init__(
        self,
        path: str,
        identity: Mapping[str, Any],
        *,
        volatile: tuple[str, ...] = (),
        finishing: tuple[str, ...] = (),
        overwrite: bool = False,
        view: Callable[[Volume], Volume] | None = None,
    ) -> None:
        self.path, self.overwrite, self._view = path, overwrite, view
        self._file, self._dataset, self._format = place(path)
        self._identity = {**plain(identity), "dataset": self._dataset}
        self._volatile, self._finishing = set(volatile), set(finishing)
        self.folder = stage_folder(path)
        self.array, self._listing, self._plan = (self.folder / n for n in ("tiles.zarr", "done.txt", "plan.json"))
        self._made: list[Path] = []
        self.tile: Tile = (1, 1, 1)
        self._info: VolumeInfo | None = None
        self._output: ZarrOutput | None = None
        self._started = False
        self.done: set[Box] = set()
        self._taken_up: set[Box] = set()
        self.decisions: dict[str, Any] = {}
        self.found: dict[str, Any] = {}
        if not self.moved:
            check_volume_output(path, overwrite)

    @property
    def moved(self) -> bool:
        """Whether the output already has its name, and only the stage has to be removed."""
        return read_json(self._plan).get("identity") == self._identity and holds_finished(self.path)

    @property
    def converts(self) -> bool:
        """Whether the output differs from the array of tiles."""
        return self._view is not None or self._format is not TILES

    @property
    def count(self) -> int:
        """Number of tiles."""
        return sum(1 for _ in self.tiles())

    def tiles(self) -> Iterator[Box]:
        """All tiles, done or not."""
        assert self._info is not None
        return tiles(Box.of_shape(self._info.shape), self.tile)

    def __enter__(self) -> Self:
        self._acquire()
        try:
            self._take_up()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if (self._started and not self.done) or (kind is None and self.moved):  # nothing to keep
            self._discard()
        self._release()

    def start(self, info: VolumeInfo, tile: Tile, decisions: Mapping[str, Any]) -> None:
        """Start, or continue an unfinished output with the same tiles; ``decisions`` are stored."""
        if self._view is None:
            check_voxel_type(self.path, info.dtype)
        self._info, self.tile, self._started = info, (tile[0], tile[1], tile[2]), True
        with explained(self._file):
            if self.decisions and is_array(self.array):
                remove_partial(self.array)
                self._output = ZarrOutput.reopen(self.array)
                lines: list[str] = []
                with suppress(OSError):
                    lines = self._listing.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
                listed = {line.strip() for line in lines if line.endswith("\n")}  # a killed process may leave a part
                self._list({tile for tile in self.tiles() if str(tile) in listed and self._chunk(tile).is_file()})
                self._taken_up = set(self.done)
            else:
                self._discard()
                self._output = ZarrOutput(self.array, info, chunks=self.tile)
                self.decisions = dict(plain(decisions))
                self._write_plan()

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one whole tile and list it as done."""
        assert self._output is not None
        with explained(self._file):
            self._output.write(box, image_zyx)
            self._add(box)

    def take(self, box: Box, patience: float = PATIENCE) -> None:
        """List a tile as done that another process has written to `array`; it must appear here within ``patience``."""
        wait_for(self._chunk(box), patience)
        with explained(self._file):
            self._add(box)

    def add_metadata(self, found: Mapping[str, Any]) -> None:
        """Add metadata to the output that are only known when all tiles are done."""
        assert self._info is not None
        assert self._output is not None
        self.found = dict(found)
        self._info = replace(self._info, metadata={**self._info.metadata, **found})
        with explained(self._file):
            self._output.describe(self._info.metadata)

    def finish(self, on_tile: Callable[[Box], None] | None = None) -> None:
        """Check that no tile is missing, convert the tiles to the output's format, and move it into place."""

        def make(source: Volume, path: str) -> None:
            assert self._info is not None
            info = replace(self._info if self._view is None else source.info, path=path)
            convert(source, info, self.tile, read=self._read_back, on_box=on_tile)

        self._finish(make if self.converts else None)

    def finish_as(
        self, write: Callable[[Volume, VolumeWriter], None], dtype: np.dtype[Any], metadata: Mapping[str, Any]
    ) -> None:
        """As `finish`, but ``write`` makes the output from the tiles, seen through the view; the shape is the same."""

        def make(source: Volume, path: str) -> None:
            options: dict[str, Any] = {"voxel_size": source.voxel_size, "metadata": metadata}
            with create_volume(path, source.shape, dtype, **options) as writer:
                write(source, writer)

        self._finish(make)

    def _finish(self, make: Callable[[Volume, str], None] | None) -> None:
        """Move the output into place if that is not done; it may have been made before the process was killed."""
        if self.moved:
            return
        with explained(self._file):
            there = {tile for tile in self.done if self._chunk(tile).is_file()}
            missing = set(self.tiles()) - there
            if missing:
                self._list(there)
                what = f"the output is not complete, {len(missing)} tiles are missing"
                raise UserError(what, self.path, "run the same command again to compute them")
            whole = read_json(self._plan).get("whole")
            result = self.folder / whole["result"] if whole else self._convert(make)
            if not result.exists():
                result = self._convert(make)
            self._write_plan({"result": result.relative_to(self.folder).as_posix(), "stamp": _stamp(result)})
            move_into_place(result, self._file, overwrite=self.overwrite)
        self._clear()

    def _convert(self, make: Callable[[Volume, str], None] | None) -> Path:
        """The output, made from the tiles seen through the view; without ``make`` it is their array."""
        source = open_volume(str(self.array))
        if make is None:
            for tile in self._taken_up:  # tiles of an earlier process may have been damaged since
                self._read_back(source, tile)
            return self.array
        result = self.folder / "converted" / self._file.name
        remove(result.parent)
        named = f"{result}:{self._dataset}" if self._format.check_replaced else str(result)
        make(source if self._view is None else self._view(source), named)
        return result

    def _read_back(self, source: Volume, box: Box) -> Array:
        """Read a box from disk; if tiles are damaged, remove all damaged ones from the list of those done."""
        try:
            return source.read(box)
        except UserError as error:
            stage = open_volume(str(self.array))
            damaged = set(self.done)
            for tile in self.done:
                with suppress(UserError):
                    stage.read(tile)
                    damaged.remove(tile)
            self._list(self.done - damaged)
            what = f"{len(damaged)} finished tiles were damaged on the disk, among them"
            found = min(damaged, key=lambda tile: tile.start, default=box)
            raise UserError(what, str(found), "run the same command again to compute them anew") from error

    def _take_up(self) -> None:
        """Resume an existing stage, or keep its tiles, or refuse or discard it if it is another command's."""
        plan = read_json(self._plan)
        stored, decisions, whole = (plan.get(key) for key in ("identity", "decisions", "whole"))
        tile = decisions.get("tile") if isinstance(decisions, dict) else None
        sound = isinstance(tile, list) and [type(side) is int and side > 0 for side in tile] == [True] * 3
        results = [self.array.name, f"converted/{self._file.name}"]
        known = whole is None or (isinstance(whole, dict) and whole.get("result") in results)
        if not (sound and known and isinstance(stored, dict) and isinstance(decisions, dict)):
            self._discard()
            return
        changed = {key for key in {*stored, *self._identity} if stored.get(key) != self._identity.get(key)}
        how = changes(stored, self._identity)
        if changed <= self._finishing:
            self.decisions = dict(decisions)
            if changed:
                log.warning("the tiles of an unfinished output are kept and finished with other options: %s", how)
                self._write_plan()
            return
        if not self.overwrite and not changed <= self._volatile | self._finishing:
            what = f"an unfinished output of another command is there ({how})"
            remedy = "run that command again to finish it, or give overwrite=true to start anew"
            raise UserError(what, str(self.folder), remedy)
        log.warning("an unfinished output is discarded: %s changed since", ", ".join(sorted(changed)))
        self._discard()

    def _write_plan(self, whole: Mapping[str, Any] | None = None) -> None:
        """Record the command and, once its result is complete and about to be moved into place, the result's stamp."""
        write_json(self._plan, {"identity": self._identity, "decisions": self.decisions, "whole": whole})

    def _chunk(self, tile: Box) -> Path:
        return self.array.joinpath("c", *(str(a // n) for a, n in zip(tile.start, self.tile, strict=True)))

    def _list(self, done: Iterable[Box]) -> None:
        self.done = set(done)
        write_text(self._listing, "".join(f"{tile}\n" for tile in self.tiles() if tile in self.done))

    def _add(self, tile: Box) -> None:
        with self._listing.open("a", encoding="utf-8") as file:
            file.write(f"{tile}\n")
        self.done.add(tile)

    def _acquire(self) -> None:
        with explained(self._file):
            self._made = make_folders(self.folder.parent)
            try:
                self.folder.mkdir(mode=0o700, exist_ok=True)
                check_own_folder(self.folder)
                self._lock = FileLock(self.folder / "lock")
                with suppress(NotImplementedError):  # a file system without locks
                    self._lock.acquire(timeout=0)
            except Timeout as error:
                raise UserError("another process is writing this output", str(self._file), "wait for it") from error
            except BaseException:
                self._remove_folders()
                raise

    def _release(self) -> None:
        """Release the lock; remove a folder without a plan, and parent folders created for it that are empty."""
        kept = self._plan.is_file()
        if not kept:
            self._clear()
        self._lock.release()
        if not kept:
            remove(self.folder / "lock")
            self._remove_folders()

    def _remove_folders(self) -> None:
        for folder in (self.folder, *reversed(self._made)):
            with suppress(OSError):  # not empty, or another process was faster
                folder.rmdir()

    def _discard(self) -> None:
        """Remove everything but the lock, the plan first, so that nobody resumes an incomplete stage."""
        for old in (*self.folder.glob("*.old"), *self.folder.glob("converted/*.old")):
            if not os.path.lexists(self._file):  # it was moved aside when the command was killed
                os.replace(old, self._file)
        remove(self._plan)
        self._clear()

    def _clear(self) -> None:
        for path in {*self.folder.iterdir()} - {self.folder / "lock", self._plan}:
            remove(path)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors such as a full disk or missing permissions into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or is_storage_error(error):
            raise explain_storage_error(error, path) from error
        raise


def wait_for(file: Path, patience: float = PATIENCE) -> None:
    """Wait until a file that another process has written appears here."""
    end = time.monotonic() + patience
    while not file.is_file():
        if time.monotonic() > end:
            what = f"a worker's output does not appear here within {patience:g} s"
            raise UserError(what, str(file), "put the output on storage that all machines share, under the same path")
        time.sleep(0.02)
        with suppress(OSError):
            next(iter(file.parent.iterdir()), None)  # makes a network folder refresh
