"""The draws of an epoch (which block or tile, in which orientation), their order, and the batches that they form.

The loader is a plain iterable, not a `torch.utils.data.DataLoader`: worker processes would have nothing to do, since
voxels are gathered on the device, and a plain iterable can save its position, so that a run resumes within an epoch
with exactly the batches it has not seen.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Sampler

from mitoseg.datasets.base import IGNORE, Region
from mitoseg.errors import UserError
from mitoseg.geometry import slabs
from mitoseg.sampling.augmentation import TILE_SYMMETRIES
from mitoseg.sampling.positions import Index, PositionTable

_LOG = logging.getLogger(__name__)

Places = dict[str, Tensor | float | bool]
_LISTED = 2**20  # the most mitochondrion voxels kept per region, evenly subsampled, to place tiles around
_CELL, _REDRAWS = 8, 100


@dataclass(frozen=True)
class Draws:
    """Draws of blocks or tiles as columns; row i of each belongs to the same one.

    Positions are int64: region, z, y, x in the region's coordinates, of the pixel that a block classifies or of a
    tile's first voxel. Further columns go by their names in a batch. Of blocks: ``label`` (0 background, 1
    mitochondrion), ``angle_b`` (float32 degrees counter-clockwise, in [0, 360)) and ``flip_b`` (mirrored in x after
    rotation). Of tiles: ``symmetry_b``, an index into one of `TILE_SYMMETRIES`, and ``seed_b`` of the augmentation.
    """

    position_n4: Index
    columns: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.position_n4)


class EpochDraws:
    """Makes the draws of blocks of an epoch, which depend on seed and epoch alone and are the same on every rank.

    On the grid, with n background and m < n mitochondrion blocks (if m > n, with the classes exchanged):

    - ``rotate``: each background block once; mitochondrion blocks are repeated until there are n, each of them
      floor(n / m) or ceil(n / m) times: rotated by 0, 90, 180, 270 degrees, then by random angles, new ones each
      epoch.
    - ``subsample``: each mitochondrion block once, and m background blocks, others each epoch; none is rotated.
    - ``none``: each block once.

    With ``positions=any``, ``epoch_blocks`` (None: as many as on the grid) are drawn with replacement: half of each
    class with ``rotate`` (the rarer class at random angles) and ``subsample``, in the natural proportion with
    ``none``. ``rotate_background`` gives the more common class the same angles as the rarer one under ``rotate``:
    interpolation smooths the image, so a network might learn that smooth means mitochondrion. In addition, both
    classes are augmented by ``augment``: ``turns``, a random quarter turn; ``dihedral``, that and a reflection half of
    the time; ``any_angle``, any angle and a reflection half of the time; or ``none``.
    """

    def __init__(
        self,
        table: PositionTable,
        *,
        balance: str = "rotate",
        rotate_background: bool = False,
        augment: str = "none",
        epoch_blocks: int | None = None,
        seed: int = 0,
    ) -> None:
        self.table, self.balance, self.augment, self.seed = table, balance, augment, seed
        self.rotate_background = rotate_background
        self.grid = table.rule.positions == "grid"
        if epoch_blocks is not None and (self.grid or epoch_blocks < 2):
            remedy = "leave it null, or set positions=any and draw 2 blocks or more per epoch"
            raise UserError("epoch_blocks is too small, or given without positions=any", epoch_blocks, remedy)
        sizes = {"rotate": 2 * max(table.counts), "subsample": 2 * min(table.counts), "none": sum(table.counts)}
        self.size = sizes[balance] if self.grid else epoch_blocks or table.grid_blocks
        self._rare = int(table.counts[1] <= table.counts[0])

    def __len__(self) -> int:
        return self.size

    @property
    def share(self) -> float:
        """Fraction of mitochondria among the draws (the expected one for draws in the natural proportion)."""
        return self.table.prior if self.balance == "none" else (self.size // 2) / self.size

    def draw(self, epoch: int) -> Draws:
        """The draws of an epoch: first all background, then all mitochondria; the sampler shuffles them."""
        rng = np.random.default_rng([self.seed, epoch, 0])
        foreground = self.size // 2
        if self.balance == "none":
            foreground = self.table.counts[1] if self.grid else int(rng.binomial(self.size, self.table.prior))
        parts = [self._draw_class(c, n, rng) for c, n in enumerate((self.size - foreground, foreground))]
        number_n, angle_n = (np.concatenate(column) for column in zip(*parts, strict=True))
        flip_n = np.zeros(self.size, bool)
        if self.augment == "any_angle":
            angle_n = angle_n + 360 * rng.random(self.size)
        elif self.augment != "none":
            angle_n = angle_n + 90 * rng.integers(4, size=self.size)
        if self.augment in ("dihedral", "any_angle"):
            flip_n = rng.random(self.size) < 0.5
        label_n = np.repeat(np.arange(2, dtype=np.int64), (self.size - foreground, foreground))
        angle_n = angle_n.astype(np.float32) % np.float32(360)  # rounding may reach 360
        columns = {"label": label_n, "angle_b": angle_n, "flip_b": flip_n}
        return Draws(self.table.positions(number_n), columns)

    def _draw_class(self, label: int, size: int, rng: np.random.Generator) -> tuple[Index, npt.NDArray[np.float64]]:
        """Position numbers of one class, and their angles before augmentation."""
        turned = self.balance == "rotate" and (label == self._rare or self.rotate_background)
        if not self.grid:
            number_n = self.table.sample(label, size, rng)
            return number_n, 360 * rng.random(size) if turned else np.zeros(size)
        number_n = np.resize(rng.permutation(self.table.members(label)), size)
        if not turned:
            return number_n, np.zeros(size)
        repeat_n = np.arange(size) // self.table.counts[self._rare]
        angle_n = np.where(repeat_n < 4, 90.0 * repeat_n, 360 * rng.random(size))
        return number_n, angle_n if label == self._rare else rng.permutation(angle_n)

    def summary(self) -> dict[str, str | int | float]:
        """Plain data for provenance: blocks, draws and fractions; random ones are those of epoch 0."""
        draws, rule = self.draw(0), self.table.rule
        distinct = pd.DataFrame(draws.position_n4).assign(angle=draws.columns["angle_b"]).drop_duplicates()
        drawn = np.bincount(draws.columns["label"], minlength=2).tolist()
        background, foreground = self.table.counts
        return {
            "positions": rule.positions,
            "label_rule": rule.label_rule,
            "balance": self.balance,
            "rotate_background": self.rotate_background,
            "augment": self.augment,
            "blocks_foreground": foreground,
            "blocks_background": background,
            "blocks_dropped": self.table.dropped,
            "draws_foreground": drawn[1],
            "draws_background": drawn[0],
            "draws_distinct": len(distinct),
            "multiplicity_foreground": drawn[1] / foreground,
            "multiplicity_background": drawn[0] / background,
            "prior": self.table.prior,
            "batch_prior": self.share,
        }


class EpochTiles:
    """Makes the draws of tiles of an epoch, which depend on seed and epoch alone and are the same on every rank.

    Tiles that contain a labelled voxel are drawn uniformly over all regions and positions; a fraction of the draws
    instead contains a uniformly drawn mitochondrion voxel, at a random position inside the tile. Regions smaller than
    a tile are left out, with a warning. ``counts`` are the background and mitochondrion voxels of the regions.

    A tile is (z, y, x) voxels, with z = 1 for 2D networks; ``augment`` is a key of `TILE_SYMMETRIES`. Unless
    ``epoch_tiles`` is given, an epoch has as many draws as tiles would fill the regions.
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
        if augment != "none" and tile[1] != tile[2]:
            raise UserError("a tile to be rotated must be square in y and x", tile, "or give data.augment=none")
        if augment == "cubic" and len(set(tile)) > 1:
            remedy = "or give data.augment=dihedral_z"
            raise UserError("data.augment=cubic needs a tile with three equal sides", tile, remedy)
        if not 0 <= foreground_share <= 1:
            remedy = "give a number from 0 to 1; data.foreground= is for label values"
            raise UserError("foreground_share is not a fraction of the tiles", foreground_share, remedy)
        if epoch_tiles is not None and epoch_tiles < 1:
            raise UserError("too few epoch_tiles", epoch_tiles, "draw 1 tile or more per epoch")
        self._size = " x ".join(map(str, tile))
        large = [all(n >= t for n, t in zip(region.box.shape, tile, strict=True)) for region in regions]
        for region, fits in zip(regions, large, strict=True):
            if not fits:
                what = f"training region {region.name or region.box} is smaller than a tile of {self._size} voxels"
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
        """Fraction of mitochondria among the labelled voxels of the regions."""
        return self.counts[1] / sum(self.counts)

    def draw(self, epoch: int) -> Draws:
        """The draws of an epoch; the sampler shuffles them."""
        rng = np.random.default_rng([self.seed, epoch, 2])
        chosen = round(self.foreground_share * self.size)
        position_n4 = self._uniformly(self.size - chosen, rng)
        for _ in range(_REDRAWS):  # tiles without a labelled voxel, such as in wide padding
            (empty_n,) = np.nonzero(~self._has_label(position_n4))
            if not len(empty_n):
                break
            position_n4[empty_n] = self._uniformly(len(empty_n), rng)
        voxel_n4 = self._voxels_n4[rng.integers(len(self._voxels_n4), size=chosen)]
        start_n3 = voxel_n4[:, 1:] - rng.integers(self.tile, size=(chosen, 3))
        last_n3 = self.shapes_r3[voxel_n4[:, 0]] - np.array(self.tile)
        on_foreground_n4 = np.concatenate([voxel_n4[:, :1], np.clip(start_n3, 0, last_n3)], axis=1)
        position_n4 = np.concatenate([position_n4, on_foreground_n4])
        symmetry_n = rng.integers(len(TILE_SYMMETRIES[self.augment]), size=self.size)
        return Draws(position_n4, {"symmetry_b": symmetry_n, "seed_b": rng.integers(2**31, size=self.size)})

    def _has_label(self, position_n4: Index) -> npt.NDArray[np.bool_]:
        """Which tiles contain a labelled voxel, to the accuracy of `_CELL` pixels."""
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

    def summary(self) -> dict[str, str | int | float]:
        """Plain data for provenance."""
        return {
            "tile": self._size,
            "augment": self.augment,
            "foreground_share": self.foreground_share,
            "voxels_foreground": self.counts[1],
            "voxels_background": self.counts[0],
            "draws": self.size,
            "prior": self.prior,
        }


def _survey(region: Region) -> tuple[tuple[int, int], npt.NDArray[np.int64], npt.NDArray[np.int32] | None]:
    """Count a region's background and mitochondrion voxels, and locate some of the latter (z, y, x) and the labels.

    The last is None if all voxels are labelled; else whether cells of `_CELL` pixels in y and x contain a labelled
    voxel, as cumulative sums along z, y and x with a leading 0.
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


class BlockSampler(Sampler[npt.NDArray[np.int64]]):
    """Yields one rank's part of each batch, as indices into the ``size`` draws of an epoch.

    The order is a permutation that depends on (seed, epoch), not on the number of ranks. The batch of step k is
    ``order[k * batch_size : (k + 1) * batch_size]``. With w ranks and gradients accumulated over m parts, it is
    divided into w m shares of every w m-th draw, and rank r takes shares r, r + w, ... in turn:

        batch of 9, two ranks, two parts:   0 1 2 3 4 5 6 7 8   ->   rank 0: 0 4 8 | 2 6   rank 1: 1 5 | 3 7

    so that no draw goes to two ranks and together they see the batches of a single device. A last batch with fewer
    draws than shares is merged into the previous one, so that all ranks take the same number of steps.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, parts: int = 1
    ) -> None:
        self.shares = world * parts
        if min(size, batch_size) < self.shares:
            accumulated = f", in {parts} parts each," if parts > 1 else ""
            what = f"{world} devices{accumulated} cannot share batches of {batch_size} out of {size} blocks"
            raise UserError(what, None, "use fewer devices, or a larger batch_size")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world, self.parts = rank, world, parts
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest >= self.shares)

    def __len__(self) -> int:
        return self.steps * self.parts

    def draws_in_step(self, step: int) -> int:
        """Draws of one step's batch, over all ranks and parts."""
        return self.size - step * self.batch_size if step == self.steps - 1 else self.batch_size

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        order = np.random.default_rng([self.seed, self.epoch, 1]).permutation(self.size)
        for step in range(self.steps):
            start = step * self.batch_size
            batch = order[start : start + self.draws_in_step(step)]
            for part in range(self.parts):
                yield batch[part * self.world + self.rank :: self.shares]


class EpochLoader:
    """Iterates over the batches of one epoch on one rank, as positions rather than voxels.

    Yields dicts of ``position_b4`` int64, the other columns of `Draws`, and ``weight``; those of blocks tell by
    ``exact`` whether all angles are quarter turns. The mean loss of a batch times its weight, averaged over ranks and
    accumulated parts by the Trainer, is the mean over all draws of the optimizer step, even if they do not divide
    evenly; on one device without accumulation it is 1.
    """

    def __init__(self, draws: EpochDraws | EpochTiles, sampler: BlockSampler) -> None:
        self.draws, self.sampler = draws, sampler
        self._state = {"epoch": 0, "batch": 0}
        self._resume = self._state

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Places]:
        epoch = self.sampler.epoch  # read at the first batch: the Trainer sets it after calling iter()
        draws = self.draws.draw(epoch)
        skip = self._resume["batch"] if self._resume["epoch"] == epoch else 0
        for batch, index_b in enumerate(self.sampler):
            if batch < skip:
                continue
            self._state = {"epoch": epoch, "batch": batch + 1}
            total = self.sampler.draws_in_step(batch // self.sampler.parts)
            columns = {"position_b4": draws.position_n4, **draws.columns}
            places: Places = {name: torch.from_numpy(column[index_b]) for name, column in columns.items()}
            if "angle_b" in columns:
                places["exact"] = not np.any(columns["angle_b"][index_b] % 90)
            yield {**places, "weight": len(index_b) * self.sampler.shares / total}
        self._resume = {"epoch": -1, "batch": 0}  # not earlier: the Trainer may start an epoch twice

    def state_dict(self) -> dict[str, int]:
        """The epoch of the last batch, and how many of its batches have been seen."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the batches already seen, in the epoch of ``state`` until it is complete."""
        self._state = self._resume = dict(state)
