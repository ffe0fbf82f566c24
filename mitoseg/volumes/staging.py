"""A volume that is written tile by tile, and taken up again where it was left, even after the process was killed.

A tile is listed as done after it is written, so whatever happens, at most the tiles in flight are computed again. A
chunk belongs to one tile alone and carries a checksum. `mitoseg.volumes.stage_folder` shows what lies where.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from os.path import lexists
from pathlib import Path
from typing import Any, Self

import numpy as np

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.storage import move_into_place, plain, remove
from mitoseg.volumes import zarrs
from mitoseg.volumes.base import Array, Volume, VolumeInfo
from mitoseg.volumes.hdf5 import split_dataset
from mitoseg.volumes.opening import open_volume
from mitoseg.volumes.stage_folder import explained, readable
from mitoseg.volumes.staged_tiles import StagedTiles, Tile
from mitoseg.volumes.writing import VolumeWriter, check_volume_output, create_volume, place
from mitoseg.volumes.zarr_output import ZarrOutput, is_array, remove_partial

log = logging.getLogger(__name__)


class StagedVolume(StagedTiles):
    """See the module; a context manager that holds the stage against other processes.

    Args:
        path: The output; its suffix chooses the format.
        identity: What makes this command another one than the next: plain data.
        volatile: Keys of the identity that speak of files (their times and sizes): if only these differ, what was
            computed is out of date and thrown away.
        overwrite: Whether an output that exists, or the unfinished one of another command, may be replaced.

    Raises:
        UserError: The output may not be written, another process writes it, or an unfinished output of another
            command lies there.

    Attributes:
        decisions: What the command decided when it first ran; empty in a new stage.
        done: Tiles that are on the disk.
    """

    def __init__(
        self, path: str, identity: Mapping[str, Any], *, volatile: tuple[str, ...] = (), overwrite: bool = False
    ) -> None:
        self.path, self.overwrite = path, overwrite
        self._file, self._dataset = place(path)
        self._identity, self._volatile = {**plain(identity), "dataset": self._dataset}, set(volatile)
        super().__init__(self._file)
        self._taken_up: set[Box] = set()
        self._started = False
        self.decisions: dict[str, Any] = {}
        if not self.moved:
            check_volume_output(path, overwrite)

    @property
    def moved(self) -> bool:
        """Whether the output has its name already, and only the stage is left to be removed."""
        return self._is_whole and not self._result.exists() and lexists(self._file)

    @property
    def converts(self) -> bool:
        """Whether the output has another format than the tiles."""
        return self._file.suffix.lower() not in zarrs.SUFFIXES

    def __enter__(self) -> Self:
        self._folder.acquire()
        try:
            self._take_up(self._folder.read_plan())
        except BaseException:
            self._folder.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._started and not self.done:  # nothing to keep
            self._folder.discard()
        self._folder.release()

    def start(self, info: VolumeInfo, tile: Tile, decisions: Mapping[str, Any]) -> None:
        """Begin, or go on with what was begun.

        Args:
            info: What is written.
            tile: (z, y, x) voxels of a tile, from the origin; a stage that exists must have the same.
            decisions: What to remember for the next time.
        """
        self._info, self._tile = info, (tile[0], tile[1], tile[2])
        with explained(self._file):
            if self.decisions and is_array(self._folder.array):
                remove_partial(self._folder.array)
                self._output = ZarrOutput.reopen(self._folder.array)
                listed = self._folder.listed()
                self._list({tile for tile in self.tiles() if str(tile) in listed and self._chunk(tile).is_file()})
                self._taken_up = set(self.done)
            else:
                self._folder.discard()
                self._output = ZarrOutput(self._folder.array, info, chunks=self._tile)
                self.decisions = dict(plain(decisions))
                self._folder.write_plan(self._identity, self.decisions)
        self._started = True

    def finish(self, on_tile: Callable[[Box], None] | None = None) -> None:
        """Check that every tile is there, convert them to the output's format, and give it its name.

        Args:
            on_tile: Called with each tile that is converted.

        Raises:
            UserError: Tiles are missing or damaged, or the disk is full.
        """
        if not self.moved:
            with explained(self._file):
                self._check_complete()
                if not (self._is_whole and self._result.exists()):
                    self._convert(on_tile)
                    self._folder.write_plan(self._identity, self.decisions, whole=True)
                move_into_place(self._result, self._file, overwrite=self.overwrite)
        self._folder.clear()

    def finish_as(
        self, write: Callable[[Volume, VolumeWriter], None], dtype: np.dtype[Any], metadata: Mapping[str, Any]
    ) -> None:
        """Check that every tile is there, and write what is made of them all instead of the tiles themselves.

        Args:
            write: Takes the tiles as a volume, and writes one of the same shape (z, y, x).
            dtype: Of what is written.
            metadata: What the output says of itself.

        Raises:
            UserError: As `finish`; the tiles are kept.
        """
        assert self._info is not None
        with explained(self._file):
            self._check_complete()
            shape, size = self._info.shape, self._info.voxel_size
            options = {"voxel_size": size, "metadata": metadata, "overwrite": self.overwrite}
            with create_volume(self.path, shape, dtype, **options) as writer:  # type: ignore[arg-type]
                write(open_volume(str(self._folder.array)), writer)
        self._folder.clear()

    @property
    def _result(self) -> Path:
        """The finished file or folder before it gets its name."""
        return self._folder.converted if self.converts else self._folder.array

    def _convert(self, on_tile: Callable[[Box], None] | None) -> None:
        stage = open_volume(str(self._folder.array))
        if not self.converts:
            for tile in self._taken_up:  # they lay on the disk while nobody watched
                self._read_back(stage, tile)
            return
        assert self._info is not None
        remove(self._result.parent)
        name = f"{self._result}:{self._dataset}" if split_dataset(self.path) else str(self._result)
        info = self._info
        with create_volume(name, info.shape, info.dtype, voxel_size=info.voxel_size, metadata=info.metadata) as writer:
            for tile in self.tiles():
                writer.write(tile, self._read_back(stage, tile))
                if on_tile is not None:
                    on_tile(tile)

    def _read_back(self, stage: Volume, tile: Box) -> Array:
        """A finished tile from the disk; all that were damaged there are no longer listed as done."""
        try:
            return stage.read(tile)
        except UserError as error:
            damaged = {tile for tile in self.done if not readable(stage, tile)}
            self._list(self.done - damaged)
            what = f"{len(damaged)} finished tiles were damaged on the disk, among them"
            raise UserError(what, str(tile), "run the same command again to compute them anew") from error

    def _check_complete(self) -> None:
        """Every tile is listed, and its chunk is there."""
        there = {tile for tile in self.done if self._chunk(tile).is_file()}
        missing = set(self.tiles()) - there
        if missing:
            self._list(there)
            what = f"the output is not complete, {len(missing)} tiles are missing"
            raise UserError(what, self.path, "run the same command again to compute them")

    def _take_up(self, plan: Mapping[str, Any]) -> None:
        """Compare an existing stage with this command."""
        if self._is_ours(plan):
            self.decisions = dict(plan["decisions"])
            return
        stored = plan.get("identity", {})
        keys = {key for key in {*stored, *self._identity} if stored.get(key) != self._identity.get(key)}
        if plan and not self.overwrite and not keys <= self._volatile:
            what = f"an unfinished output of another command ({', '.join(sorted(keys))} differ) lies in"
            raise UserError(what, str(self._folder.path), "run that one again to finish it, or give overwrite=true")
        if plan:
            log.warning("an unfinished output is thrown away: %s changed since", ", ".join(sorted(keys)))
        self._folder.discard()

    def _is_ours(self, plan: Mapping[str, Any]) -> bool:
        return bool(plan) and plan.get("identity") == self._identity

    @property
    def _is_whole(self) -> bool:
        """Whether the result was finished, and perhaps moved."""
        plan = self._folder.read_plan()
        return self._is_ours(plan) and bool(plan.get("whole"))
