"""The ways to turn and mirror a tile that move voxels without changing them.

dihedral     8   quarter turns and mirror images in the plane
dihedral_z  16   those, and the same with z mirrored (the order of the channels, where these are neighbouring slices)
cubic       48   all of a cube, for cubic voxels and tiles
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TileSymmetry:
    """Axes z, y, x in another order, then mirrored.

    Attributes:
        order: Which axis comes to the place of each.
        flips: Axes mirrored after that.
    """

    order: tuple[int, ...] = (0, 1, 2)
    flips: tuple[int, ...] = ()

    def __call__(self, voxels_zyx: Tensor) -> Tensor:
        """A view, or a mirrored copy."""
        turned = voxels_zyx.permute(self.order)
        return turned.flip(self.flips) if self.flips else turned


def _all(orders: list[tuple[int, ...]], axes: tuple[int, ...]) -> tuple[TileSymmetry, ...]:
    flips = [chosen for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]
    return tuple(TileSymmetry(order, flip) for order in orders for flip in flips)


TILE_SYMMETRIES: dict[str, tuple[TileSymmetry, ...]] = {
    "none": (TileSymmetry(),),
    "dihedral": _all([(0, 1, 2), (0, 2, 1)], (1, 2)),
    "dihedral_z": _all([(0, 1, 2), (0, 2, 1)], (0, 1, 2)),
    "cubic": _all(list(itertools.permutations(range(3))), (0, 1, 2)),
}
"""By name; the first of each is to leave the tile as it is."""
