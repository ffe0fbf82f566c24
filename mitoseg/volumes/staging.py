"""A volume that is written tile by tile, and taken up again where it was left, even after the process was killed.

A tile is listed as done after it is written, so whatever happens, at most the tiles in flight are computed again. A
chunk belongs to one tile alone and carries a checksum. `mitoseg.volumes.stage_folder` shows what lies where.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from os.path import lexists
from pathlib import Path
from typing import Any, Self

import numpy as np

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.storage import move_into_place, plain, remove
from mitoseg.volumes import zarrs
from mitoseg.volumes.base import Array, Volume, VolumeInfo
from mitoseg.volumes.converting import convert
from mitoseg.volumes.hdf5 import split_dataset
from mitoseg.volumes.ome_output import is_ome
from mitoseg.volumes.opening import open_volume
from mitoseg.volumes.stage_folder import explained, readable
from mitoseg.volumes.staged_tiles import StagedTiles, Tile
from mitoseg.volumes.writing import VolumeWriter, check_volume_output, check_voxel_type, create_volume, place
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
        view: Makes of the tiles, a lazy volume, another one that is the output.

    Raises:
        UserError: The output may not be written, another process writes it, or an unfinished output of another
            command lies there.

    Attributes:
        decisions: What the command decided when it first ran; empty in a new stage.
        done: Tiles that are on the disk.
        found: What `add_metadata` was given.
    """

    def __init__(
        self,
        path: str,
        identity: Mapping[str, Any],
        *,
        volatile: tuple[str, ...] = (),
        overwrite: bool = False,
        view: Callable[[Volume], Volume] | None = None,
    ) -> None:
        self.path, self.overwrite, self._view = path, overwrite, view
        self._file, self._dataset = place(path)
        self._identity, self._volatile = {**plain(identity), "dataset": self._dataset}, set(volatile)
        super().__init__(self._file)
        self._taken_up: set[Box] = set()
        self._started = False
        self.decisions: dict[str, Any] = {}
        self.found: dict[str, Any] = {}
        if not self.moved:
            check_volume_output(path, overwrite)

    @property
    def moved(self) -> bool:
        """Whether the output has its name already, and only the stage is left to be removed."""
        return self._is_whole and not self._result.exists() and lexists(self._file)

    @property
    def converts(self) -> bool:
        """Whether the output is something else than the tiles as they are."""
        return self._view is not None or is_ome(self._file) or self._file.suffix.lower() not in zarrs.SUFFIXES

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

        Raises:
            UserError: The output's format does not hold such voxels.
        """
        if self._view is None:
            check_voxel_type(self.path, info.dtype)
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

    def add_metadata(self, found: Mapping[str, Any]) -> None:
        """Have the output say more of itself, which is known once all tiles are there.

        Raises:
            UserError: The disk is full.
        """
        assert self._info is not None
        assert self._output is not None
        self.found = dict(found)
        self._info = replace(self._info, metadata={**self._info.metadata, **found})
        with explained(self._file):
            self._output.describe(self._info.metadata)

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
            write: Takes the tiles as a volume, seen through the view, and writes one of the same shape (z, y, x).
            dtype: Of what is written.
            metadata: What the output says of itself.

        Raises:
            UserError: As `finish`; the tiles are kept.
        """
        with explained(self._file):
            self._check_complete()
            source = self._source()
            options = {"voxel_size": source.voxel_size, "metadata": metadata, "overwrite": self.overwrite}
            with create_volume(self.path, source.shape, dtype, **options) as writer:  # type: ignore[arg-type]
                write(source, writer)
        self._folder.clear()

    @property
    def _result(self) -> Path:
        """The finished file or folder before it gets its name."""
        return self._folder.converted if self.converts else self._folder.array

    def _source(self) -> Volume:
        """What the output is made of."""
        tiles_zyx = open_volume(str(self._folder.array))
        return tiles_zyx if self._view is None else self._view(tiles_zyx)

    def _convert(self, on_tile: Callable[[Box], None] | None) -> None:
        source = self._source()
        if not self.converts:
            for tile in self._taken_up:  # they lay on the disk while nobody watched
                self._read_back(source, tile)
            return
        assert self._info is not None
        remove(self._result.parent)
        name = f"{self._result}:{self._dataset}" if split_dataset(self.path) else str(self._result)
        info = self._info if self._view is None else source.info
        convert(source, replace(info, path=name), self._tile, read=self._read_back, on_box=on_tile)

    def _read_back(self, source: Volume, box: Box) -> Array:
        """A box from the disk; all finished tiles that were damaged there are no longer listed as done."""
        try:
            return source.read(box)
        except UserError as error:
            stage = open_volume(str(self._folder.array))
            damaged = {tile for tile in self.done if not readable(stage, tile)}
            self._list(self.done - damaged)
            what = f"{len(damaged)} finished tiles were damaged on the disk, among them"
            found = min(damaged, key=lambda tile: tile.start, default=box)
            raise UserError(what, str(found), "run the same command again to compute them anew") from error

    def _check_complete(self) -> None:
        """Every tile is listed, and its chunk is there."""
        there = {tile for tile in self.done if self._chunk(tile).is_file()}
        missing = set(self.tiles()) - there
        if missing:
            self._list(there)
            what = f"the output is not complete, {len(missing)} tiles are missing"
            raise UserError(what, self.path, "run the same command again to compute them")

    def _take_up(self, plan: Mapping[str, Any]) -> None:
        """Take up an existing stage, or refuse or discard that of another command."""
        if self._is_ours(plan):
            self.decisions = dict(plan["decisions"])
            return
        if plan:
            changed = self._folder.differences(plan, self._identity)
            if not self.overwrite and not changed <= self._volatile:
                what = f"an unfinished output of another command ({', '.join(sorted(changed))} differ) lies in"
                raise UserError(
                    what, str(self._folder.path), "run that one again to finish it, or give overwrite=true"
                )
            log.warning("an unfinished output is thrown away: %s changed since", ", ".join(sorted(changed)))
        self._folder.discard()

    def _is_ours(self, plan: Mapping[str, Any]) -> bool:
        return bool(plan) and plan.get("identity") == self._identity

    @property
    def _is_whole(self) -> bool:
        """Whether the result was finished, and perhaps moved."""
        plan = self._folder.read_plan()
        return self._is_ours(plan) and bool(plan.get("whole"))
