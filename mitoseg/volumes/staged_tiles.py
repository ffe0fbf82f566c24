"""The tiles of a staged volume: written here or by other processes, and listed when they are on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mitoseg.geometry import Box, tiles
from mitoseg.volumes.base import Array, VolumeInfo
from mitoseg.volumes.stage_folder import PATIENCE, StageFolder, explained, wait_for
from mitoseg.volumes.zarr_output import ZarrOutput, remove_partial

Tile = tuple[int, int, int]


class StagedTiles:
    """See the module; `mitoseg.volumes.staging.StagedVolume` starts it.

    Args:
        file: The output.

    Attributes:
        done: Tiles that are on the disk.
    """

    def __init__(self, file: Path) -> None:
        self._output_file = file
        self._folder = StageFolder(file)
        self.done: set[Box] = set()
        self._tile: Tile = (1, 1, 1)
        self._info: VolumeInfo | None = None
        self._output: ZarrOutput | None = None

    @property
    def count(self) -> int:
        """Number of tiles."""
        return sum(1 for _ in self.tiles())

    def tiles(self) -> Iterator[Box]:
        """All tiles, done or not."""
        assert self._info is not None
        return tiles(Box.of_shape(self._info.shape), self._tile)

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one whole tile and list it as done.

        Raises:
            UserError: The disk is full.
        """
        assert self._output is not None
        with explained(self._output_file):
            self._output.write(box, image_zyx)
            self._folder.list_one(box)
        self.done.add(box)

    def take(self, box: Box, patience: float = PATIENCE) -> None:
        """List a tile as done that another process has written into `array`.

        Args:
            box: The tile.
            patience: Seconds in which it must appear here.

        Raises:
            UserError: It does not, or the disk is full.
        """
        wait_for(self._chunk(box), patience)
        with explained(self._output_file):
            self._folder.list_one(box)
        self.done.add(box)

    def tidy(self) -> None:
        """Remove what processes that were killed have half written, when no other one writes any more."""
        remove_partial(self._folder.array)

    @property
    def tile(self) -> Tile:
        """(z, y, x) voxels of a tile."""
        return self._tile

    @property
    def folder(self) -> Path:
        """The folder in which the output is made."""
        return self._folder.path

    @property
    def array(self) -> Path:
        """The Zarr array of the tiles, one chunk for each; several processes may write whole tiles into it."""
        return self._folder.array

    def _chunk(self, tile: Box) -> Path:
        """The file of a tile's chunk."""
        numbers = (str(a // n) for a, n in zip(tile.start, self._tile, strict=True))
        return self._folder.array.joinpath("c", *numbers)

    def _list(self, done: set[Box]) -> None:
        """Make these the tiles that are done."""
        self.done = done
        self._folder.list_all(tile for tile in self.tiles() if tile in done)
