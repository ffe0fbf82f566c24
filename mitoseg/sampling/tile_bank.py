r"""The training voxels and their labels, and batches of turned tiles out of them.

    image   |<- margin ->|<------ tile, every voxel labelled ------>|<- margin ->|

The margin is what a block network sees beyond the tile, so that each of its answers there is that of a whole window; a
network that answers a tile from the tile alone has none. It is real tissue, or the volume's reflection. An epoch's
draws say where each tile starts, how it is turned, and the seed of its augmentation.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mitoseg.datasets.base import IGNORE, Region
from mitoseg.errors import UserError
from mitoseg.geometry import slabs
from mitoseg.sampling.augmentation import TILE_SYMMETRIES, TileSymmetry
from mitoseg.sampling.bank import KeptRegion
from mitoseg.sampling.draws import Places
from mitoseg.sampling.positions import Index, check_choice
from mitoseg.volumes import CHANNEL_OFFSETS, Normalization

_LOG = logging.getLogger(__name__)


class TileBank(nn.Module):
    """The voxels and labels of some regions on one device.

    uint8 voxels stay as they are until they are gathered, any others are kept as normalised float32.

    Args:
        regions: What positions refer to, by their place in this sequence.
        normalization: Mean and standard deviation that tiles are normalised with.
        margin: (before, after), pixels that the network sees beyond a tile in y and x.
        channels: A key of `CHANNEL_OFFSETS`; None for a network on volumes, whose tiles have one channel.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        normalization: Normalization,
        *,
        margin: tuple[int, int] = (0, 0),
        channels: str | None = None,
    ) -> None:
        super().__init__()
        self.normalization, self.margin, self.channels = normalization, margin, channels
        self.reach = max(margin)
        self.raw = all(region.image.dtype == np.uint8 for region in regions)
        self._firsts: list[int] = []
        for number, region in enumerate(regions):
            kept = KeptRegion(region, self.reach)
            self._firsts.append(region.box.start[0] - kept.tissue.start[0])
            image_zyx = np.empty(kept.shape, np.uint8 if self.raw else np.float32)
            kept.fill(image_zyx, None if self.raw else normalization)
            self.register_buffer(f"image_{number}", torch.from_numpy(image_zyx))
            self.register_buffer(f"label_{number}", torch.from_numpy(region.read_label().copy()))

    def gather(
        self, position_b4: Tensor, symmetries: Sequence[TileSymmetry], tile: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        """A batch of tiles, each turned in its own way.

        Args:
            position_b4: int64 (B, 4): region, z, y, x of the first voxel in the region's own coordinates.
            symmetries: One for each tile.
            tile: (z, y, x) voxels.

        Returns:
            ``image`` float32, (B, C, Y, X), or (B, 1, Z, Y, X) for a network on volumes, in y and x larger than the
            tile by the margin; and ``label`` int64, (B, Y, X) or (B, Z, Y, X).
        """
        pairs = [
            self._tile(place, symmetry, tile) for place, symmetry in zip(position_b4.tolist(), symmetries, strict=True)
        ]
        image, label = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        image = image.float()
        if self.raw:
            mean, std, limit = self.normalization.mean, self.normalization.std, self.normalization.limit
            image = image.sub_(mean).div_(std).clamp_(-limit, limit)
        return (image[:, None], label.long()) if self.channels is None else (image, label[:, 0].long())

    def _tile(self, place: list[int], symmetry: TileSymmetry, tile: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Image (C or Z, Y, X) and label (1 or Z, Y, X) as they are stored, turned."""
        number, z, y, x = place
        image_zyx, label_zyx = getattr(self, f"image_{number}"), getattr(self, f"label_{number}")
        label = label_zyx[z : z + tile[0], y : y + tile[1], x : x + tile[2]]
        wide = [n + 2 * self.reach for n in tile[1:]]
        slices = self._slices(number, z, tile[0], len(image_zyx))
        image = image_zyx[slices, y : y + wide[0], x : x + wide[1]]
        before, after = (self.reach - m for m in self.margin)
        turned = symmetry(image)
        return turned[:, before : turned.shape[1] - after, before : turned.shape[2] - after], symmetry(label)

    def _slices(self, number: int, z: int, depth: int, kept: int) -> slice | list[int]:
        """The slices of a tile among those that are kept; a missing neighbour is the slice itself."""
        first = self._firsts[number] + z
        if self.channels is None:
            return slice(first, first + depth)
        wanted = [first + offset for offset in CHANNEL_OFFSETS[self.channels]]
        return [n if 0 <= n < kept else first for n in wanted]


_LISTED = 2**20
"""Mitochondrion voxels of a region that are remembered, evenly thinned out, to centre tiles on."""
_CELL, _REDRAWS = 8, 100


@dataclass(frozen=True)
class TileDraws:
    """Draws as columns; row i of each belongs to the same tile.

    Attributes:
        position_n4: int64, region, z, y, x of the first voxel in the region's own coordinates.
        symmetry_n: int64, a place in one of `TILE_SYMMETRIES`.
        seed_n: int64, of what augmentation does to the tile.
    """

    position_n4: Index
    symmetry_n: Index
    seed_n: Index

    def __len__(self) -> int:
        return len(self.seed_n)

    def batch(self, index_b: Index) -> Places:
        """What a batch holds besides positions and weight: how the tiles are turned, and their seeds."""
        columns = {"symmetry_b": self.symmetry_n, "seed_b": self.seed_n}
        return {name: torch.from_numpy(column[index_b]) for name, column in columns.items()}


class EpochTiles:
    """Makes an epoch's draws from (seed, epoch) alone, the same on every rank.

    Regions that are smaller than a tile are left out, with a warning.

    A tile lies anywhere in a region where a voxel has a label, drawn uniformly over all regions and places; or, for a
    share of the draws, it holds a mitochondrion voxel that is drawn uniformly, at a random place inside the tile.

    Args:
        regions: Their labels inside their boxes are read, and no others.
        tile: (z, y, x) voxels; z is 1 for networks on slices.
        augment: A key of `TILE_SYMMETRIES`.
        foreground_share: Share of the draws that are sure to hold a mitochondrion.
        epoch_tiles: Draws per epoch; None: as many as the regions have voxels for.
        seed: Of all randomness.

    Attributes:
        counts: Background and mitochondrion voxels of the regions.

    Raises:
        UserError: All regions are smaller than a tile, a class has no voxel, or an option is out of range.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        tile: tuple[int, int, int],
        *,
        augment: str = "dihedral",
        foreground_share: float = 0.0,
        epoch_tiles: int | None = None,
        seed: int = 0,
    ) -> None:
        check_choice("augment", augment, TILE_SYMMETRIES)
        if augment != "none" and tile[1] != tile[2]:
            raise UserError("a tile that is turned must be square in y and x", tile, "or give data.augment=none")
        if augment == "cubic" and len(set(tile)) > 1:
            remedy = "or give data.augment=dihedral_z"
            raise UserError("data.augment=cubic needs a tile with three equal sides", tile, remedy)
        if not 0 <= foreground_share <= 1:
            remedy = "give a number from 0 to 1; data.foreground= names values of labels"
            raise UserError("foreground_share is not a share of the tiles", foreground_share, remedy)
        if epoch_tiles is not None and epoch_tiles < 1:
            raise UserError("too few epoch_tiles", epoch_tiles, "draw 1 tile or more per epoch")
        if seed < 0:
            raise UserError("a negative seed", seed, "give a seed of 0 or more")
        large = [all(n >= t for n, t in zip(region.box.shape, tile, strict=True)) for region in regions]
        for region, fits in zip(regions, large, strict=True):
            if not fits:
                what = f"training region {region.name or region.box} is smaller than a tile of {_text(tile)} voxels"
                if not any(large):
                    raise UserError(what, region.box.shape, "give a smaller data.tile=[z,y,x]")
                _LOG.warning("%s: it is left out", what)
        self.tile, self.augment, self.foreground_share, self.seed = tile, augment, foreground_share, seed
        self.shapes_r3 = np.array([region.box.shape for region in regions])
        counted = [_survey(region) for region in regions]
        self.counts = (sum(c[0] for c, _, _ in counted), sum(c[1] for c, _, _ in counted))
        self._labelled = [labelled for _, _, labelled in counted]
        for name, count in zip(("background", "mitochondrion"), self.counts, strict=True):
            if not count:
                raise UserError(f"no {name} voxel in the training regions", None, "check the labels, or the split")
        self._voxels_n4 = np.concatenate(
            [np.insert(v, 0, r, axis=1) for r, (_, v, _) in enumerate(counted) if large[r]]
        )
        self._places_r = np.where(large, np.prod(np.maximum(self.shapes_r3 - np.array(tile) + 1, 0), axis=1), 0)
        voxels = int(np.prod(self.shapes_r3, axis=1)[large].sum())
        self.size = epoch_tiles or max(1, round(voxels / math.prod(tile)))

    def __len__(self) -> int:
        return self.size

    @property
    def prior(self) -> float:
        """Share of mitochondria among the labelled voxels of the regions."""
        return self.counts[1] / sum(self.counts)

    def draw(self, epoch: int) -> TileDraws:
        """The draws of an epoch; a sampler mixes them."""
        rng = np.random.default_rng([self.seed, epoch, 2])
        chosen = round(self.foreground_share * self.size)
        position_n4 = np.concatenate([self._anywhere(self.size - chosen, rng), self._on_foreground(chosen, rng)])
        symmetry_n = rng.integers(len(TILE_SYMMETRIES[self.augment]), size=self.size)
        return TileDraws(position_n4, symmetry_n, rng.integers(2**31, size=self.size))

    def _anywhere(self, size: int, rng: np.random.Generator) -> Index:
        """Places of tiles; those without a labelled voxel, as in wide padding, are drawn again."""
        position_n4 = self._uniformly(size, rng)
        for _ in range(_REDRAWS):
            (empty_n,) = np.nonzero(~self._has_label(position_n4))
            if not len(empty_n):
                break
            position_n4[empty_n] = self._uniformly(len(empty_n), rng)
        return position_n4

    def _has_label(self, position_n4: Index) -> npt.NDArray[np.bool_]:
        """Which tiles hold a labelled voxel, to the cell of `_CELL` pixels."""
        found_n = np.ones(len(position_n4), np.bool_)
        for number, summed_zyx in enumerate(self._labelled):
            (rows,) = np.nonzero(position_n4[:, 0] == number)
            if summed_zyx is None or not len(rows):
                continue
            cell = np.array((1, _CELL, _CELL))
            start_n3 = position_n4[rows, 1:]
            corners = np.stack([start_n3 // cell, -(-(start_n3 + self.tile) // cell)])
            count_n = np.zeros(len(rows), np.int64)
            for z, y, x in itertools.product((0, 1), repeat=3):
                sign = 1 if (z + y + x) % 2 else -1
                count_n += sign * summed_zyx[corners[z, :, 0], corners[y, :, 1], corners[x, :, 2]]
            found_n[rows] = count_n > 0
        return found_n

    def _uniformly(self, size: int, rng: np.random.Generator) -> Index:
        region_n = rng.choice(len(self._places_r), size=size, p=self._places_r / self._places_r.sum())
        start_n3 = rng.integers(self.shapes_r3[region_n] - np.array(self.tile) + 1)
        return np.concatenate([region_n[:, None], start_n3], axis=1)

    def _on_foreground(self, size: int, rng: np.random.Generator) -> Index:
        voxel_n4 = self._voxels_n4[rng.integers(len(self._voxels_n4), size=size)]
        start_n3 = voxel_n4[:, 1:] - rng.integers(self.tile, size=(size, 3))
        last_n3 = self.shapes_r3[voxel_n4[:, 0]] - np.array(self.tile)
        return np.concatenate([voxel_n4[:, :1], np.clip(start_n3, 0, last_n3)], axis=1)

    def summary(self) -> dict[str, str | int | float]:
        """Plain data for provenance."""
        return {
            "tile": _text(self.tile),
            "augment": self.augment,
            "foreground_share": self.foreground_share,
            "voxels_foreground": self.counts[1],
            "voxels_background": self.counts[0],
            "draws": self.size,
            "prior": self.prior,
        }


def _text(tile: Sequence[int]) -> str:
    return " x ".join(map(str, tile))


def _survey(region: Region) -> tuple[tuple[int, int], npt.NDArray[np.int64], npt.NDArray[np.int32] | None]:
    """Background and mitochondrion voxels of a region, where some of the latter lie (z, y, x), and where labels are.

    The last is None where all voxels have one; else cells of `_CELL` pixels in y and x that hold one, summed up along
    z, y and x from a leading 0.
    """
    background = foreground = 0
    found: list[npt.NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
    cells: list[npt.NDArray[np.bool_]] = []
    thin = max(1, region.box.size // 10 // _LISTED)
    for slab in slabs(region.box, 16):
        label_zyx = region.label.read(slab)
        background += int(np.count_nonzero(label_zyx == 0))
        number_n = np.flatnonzero(label_zyx == 1)
        foreground += len(number_n)
        voxel_n3 = np.stack(np.unravel_index(number_n[::thin], label_zyx.shape), axis=1)
        voxel_n3[:, 0] += slab.start[0] - region.box.start[0]
        found.append(voxel_n3)
        padded = np.pad(label_zyx != IGNORE, ((0, 0), *((0, -n % _CELL) for n in label_zyx.shape[1:])))
        z, y, x = padded.shape
        cells.append(np.asarray(padded.reshape(z, y // _CELL, _CELL, x // _CELL, _CELL).any(axis=(2, 4))))
    labelled_zyx = np.concatenate(cells)
    summed_zyx = labelled_zyx.cumsum(0, np.int32).cumsum(1, np.int32).cumsum(2, np.int32)
    summed = None if labelled_zyx.all() else np.pad(summed_zyx, ((1, 0),) * 3)
    return (background, foreground), np.concatenate(found), summed
