r"""The positions in the labelled regions that may become training blocks, and their classes.

A position is the pixel p that a block classifies; the labelled block of 32 is ``[p - 16, p + 15]`` in y and x, one
slice in z. On the grid, blocks do not overlap and p = 32 i + 16; with ``any``, p is every pixel (for ``center``) or
every pixel whose block lies inside the region (for the rules about the whole block).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.datasets.base import IGNORE, Region
from mitoseg.errors import UserError
from mitoseg.geometry import anchor, slabs
from mitoseg.volumes.base import Array

Classes = npt.NDArray[np.uint8]
Index = npt.NDArray[np.int64]

_RARE = 1 / 16  # classes rarer than this are listed; others are found by rejection sampling


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    """Refuse a value that is not one of the choices."""
    if value not in choices:
        raise UserError(f"unknown {option}", value, f"choose one of {', '.join(choices)}")


def check_positive(option: str, value: int) -> None:
    """Refuse a number below 1."""
    if not (value >= 1 and value % 1 == 0):  # also NaN and infinity
        raise UserError(f"{option} is not positive", value, "give a whole number, 1 or more")


def box_sums(mask_zyx: Array, block: int, step: int) -> npt.NDArray[np.int32]:
    """Sums over block x block pixels of each slice, for blocks starting at every ``step``-th pixel."""
    Z, Y, X = mask_zyx.shape
    total = np.zeros((Z, Y + 1, X + 1), np.int32)
    inner = total[:, 1:, 1:]
    np.cumsum(mask_zyx, axis=1, dtype=np.int32, out=inner)
    np.cumsum(inner, axis=2, dtype=np.int32, out=inner)
    rows = total[:, block::step] - total[:, : Y + 1 - block : step]
    sums: npt.NDArray[np.int32] = rows[:, :, block::step] - rows[:, :, : X + 1 - block : step]
    return sums


@dataclass(frozen=True)
class BlockRule:
    """Where blocks with a given side in pixels may lie, and which class they get.

    ``purity``: mitochondrion if at least ``purity[1]`` of the block's pixels are, background if at most ``purity[0]``
    are, dropped in between; ``majority``: mitochondrion if more than half are; ``center``: the label of the classified
    pixel. The first two drop blocks that contain an ignored voxel, the last drops positions whose own label is
    ignored.
    """

    label_rule: str = "purity"
    positions: str = "grid"
    purity: Sequence[float] = (0.2, 0.8)
    block: int = 32

    def __post_init__(self) -> None:
        check_choice("label_rule", self.label_rule, ("purity", "majority", "center"))
        check_choice("positions", self.positions, ("grid", "any"))
        if len(self.purity) != 2 or not 0 <= self.purity[0] < self.purity[1] <= 1:
            raise UserError("purity is not [low, high]", list(self.purity), "give two fractions, 0 <= low < high <= 1")
        check_positive("block", self.block)

    @property
    def step(self) -> int:
        """Pixels from one position to the next."""
        return self.block if self.positions == "grid" else 1

    @property
    def first(self) -> int:
        """The first position along y and x."""
        return 0 if (self.positions, self.label_rule) == ("any", "center") else anchor(self.block)

    def lattice(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Number of positions along z, y and x in a region of this shape."""
        if (self.positions, self.label_rule) == ("any", "center"):
            return shape[0], shape[1], shape[2]
        return shape[0], (shape[1] - self.block) // self.step + 1, (shape[2] - self.block) // self.step + 1

    def classes(self, label_zyx: Classes) -> Classes:
        """The class of each position in whole slices, shaped as `lattice`: 0, 1 mitochondrion, `IGNORE` dropped."""
        if self.label_rule == "center":
            _, ny, nx = self.lattice(label_zyx.shape)
            return label_zyx[:, self.first :: self.step, self.first :: self.step][:, :ny, :nx]
        area = self.block**2
        foreground = box_sums(label_zyx == 1, self.block, self.step)
        if self.label_rule == "majority":
            class_zyx = (2 * foreground > area).astype(np.uint8)
        else:
            low, high = math.floor(self.purity[0] * area + 1e-9), math.ceil(self.purity[1] * area - 1e-9)
            class_zyx = np.full(foreground.shape, IGNORE, np.uint8)
            class_zyx[foreground <= low] = 0
            class_zyx[foreground >= high] = 1
        ignored = label_zyx == IGNORE
        if ignored.any():
            class_zyx[box_sums(ignored, self.block, self.step) > 0] = IGNORE
        return class_zyx


class PositionTable:
    """Every position of some regions with its class, numbered consecutively through all regions.

    ``counts`` are the numbers of background and mitochondrion positions, ``dropped`` that of the others;
    ``grid_blocks`` is the number of blocks that fit side by side into the regions, including dropped ones.
    """

    def __init__(self, regions: Sequence[Region], rule: BlockRule) -> None:
        self.rule, side = rule, rule.block
        for region in regions:
            if min(region.box.shape[1:]) < side:
                what = f"training region {region.name or region.box} is smaller than a block of {side} pixels"
                raise UserError(what, region.box.shape[1:], "use a larger volume, or another split")
        shapes = [region.box.shape for region in regions]
        self.grid_blocks = sum(z * (y // side) * (x // side) for z, y, x in shapes)
        self.lattices = [rule.lattice(shape) for shape in shapes]
        self._starts = np.cumsum([0, *(math.prod(lattice) for lattice in self.lattices)], dtype=np.int64)
        self._class_n = np.empty(self._starts[-1], np.uint8)
        start = 0
        for region in regions:
            for slab in slabs(region.box, 16):  # by slabs: hardly more than one byte per pixel
                class_n = rule.classes(region.label.read(slab)).reshape(-1)
                self._class_n[start : start + len(class_n)] = class_n
                start += len(class_n)
        self.counts = (int(np.count_nonzero(self._class_n == 0)), int(np.count_nonzero(self._class_n == 1)))
        self.dropped = len(self._class_n) - sum(self.counts)
        for name, count in zip(("background", "mitochondria"), self.counts, strict=True):
            if not count:
                what = f"no {name} block among the {len(self._class_n)} of the training regions under label_rule"
                raise UserError(what, rule.label_rule, "choose another label_rule, or positions=any")
        self._listed = {
            c: self.members(c) for c, count in enumerate(self.counts) if count < _RARE * len(self._class_n)
        }

    def __len__(self) -> int:
        return len(self._class_n)

    @property
    def prior(self) -> float:
        """Fraction of mitochondria among all positions that were not dropped."""
        return self.counts[1] / sum(self.counts)

    def members(self, label: int) -> Index:
        """The numbers of all positions of a class, in ascending order."""
        return np.flatnonzero(self._class_n == label).astype(np.int64, copy=False)

    def sample(self, label: int, size: int, rng: np.random.Generator) -> Index:
        """Numbers of ``size`` positions of a class, drawn uniformly with replacement."""
        if label in self._listed:
            return self._listed[label][rng.integers(self.counts[label], size=size)]
        found: list[Index] = [np.empty(0, np.int64)]
        missing, share = size, self.counts[label] / len(self)
        while missing > 0:
            trial = rng.integers(len(self), size=int(1.1 * missing / share) + 16)
            found.append(trial[self._class_n[trial] == label])
            missing -= len(found[-1])
        return np.concatenate(found)[:size]

    def positions(self, number_n: Index) -> Index:
        """Region, z, y, x (int64, (n, 4)) of numbered positions, in each region's coordinates."""
        region = np.searchsorted(self._starts, number_n, side="right") - 1
        lattice_n3 = np.asarray(self.lattices)[region]
        rest, x = np.divmod(number_n - self._starts[region], lattice_n3[:, 2])
        z, y = np.divmod(rest, lattice_n3[:, 1])
        y, x = (self.rule.first + self.rule.step * place for place in (y, x))
        return np.stack([region, z, y, x], axis=1)
