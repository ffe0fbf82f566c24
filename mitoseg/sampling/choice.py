"""Blocks or whole tiles: the datamodule that a config asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mitoseg.datasets.base import Recipe
from mitoseg.errors import UserError
from mitoseg.sampling.module import BlockDataModule
from mitoseg.sampling.tile_module import TileDataModule

BLOCK_OPTIONS = (
    *("positions", "label_rule", "purity", "block", "balance", "rotate_background", "interpolation"),
    *("epoch_blocks", "window"),
)
"""Options that say nothing of whole tiles."""
TILE_OPTIONS = ("foreground_share", "epoch_tiles", "spatial_dims", "margin", "augmentation")
"""Options that say nothing of blocks."""


def data_module(
    recipe: Callable[..., Recipe],
    *,
    tile: tuple[int, int, int] | None = None,
    **options: Any,  # noqa: ANN401
) -> BlockDataModule | TileDataModule:
    """The datamodule for blocks, or for tiles if their size is given.

    Args:
        recipe: Makes the data set.
        tile: (z, y, x) voxels of a training tile; None: train on blocks.
        **options: Of `BlockDataModule` and of `TileDataModule`; those of the other one are left out.

    Raises:
        UserError: See there; or the network has no window, and no tile is given.
    """
    if tile is None:
        if options.get("window") is None:
            raise UserError("this network is trained on whole tiles", None, "give data.tile=[z,y,x]")
        return BlockDataModule(recipe, **{k: v for k, v in options.items() if k not in TILE_OPTIONS})
    return TileDataModule(recipe, tile=tile, **{k: v for k, v in options.items() if k not in BLOCK_OPTIONS})
