"""What training blocks conventionally are: a map-style dataset that makes one block at a time, and a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch.nn.functional import grid_sample
from torch.utils.data import DataLoader, Dataset

from mitoseg.geometry import anchor
from mitoseg.sampling import BlockDataModule, BlockSampler
from mitoseg.sampling.bank import half_side
from mitoseg.volumes import channel_slices

WAYS = ("grid_sample", "map_coordinates")
"""How one block is turned by any angle."""


class ConventionalBlocks(Dataset[tuple[Tensor, int]]):
    """The draws of the first epoch, one block at a time, out of volumes that were padded once.

    Args:
        data: A datamodule that is set up.
        way: One of `WAYS`.
    """

    def __init__(self, data: BlockDataModule, way: str = "grid_sample") -> None:
        self.draws, self.normalization = data.draws.draw(0), data.normalization
        self.window, self.channels, self.way = data.window, data.channels, way
        self.pivot = anchor(data.window) - (0.0 if data.rule.label_rule == "center" else 0.5)
        self.margin = int(half_side(data.window, self.pivot, any_angle=True)) + 1
        pad = ((0, 0), (self.margin,) * 2, (self.margin,) * 2)
        self.starts = [region.box.start for region in data.splits.train]
        read = [region.image.read(region.image.box) for region in data.splits.train]
        self.volumes = [np.pad(image_zyx, pad, mode="reflect") for image_zyx in read]

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        angle, flip = float(self.draws.columns["angle_b"][index]), bool(self.draws.columns["flip_b"][index])
        exact = angle % 90 == 0
        half = half_side(self.window, self.pivot, any_angle=not exact)
        square_cyx = self._square(index, half)
        make = self._turn if exact else getattr(self, f"_{self.way}")
        block_cyx = self.normalization.apply(make(square_cyx, angle, flip, half))
        return torch.from_numpy(block_cyx), int(self.draws.columns["label"][index])

    def _square(self, index: int, half: float) -> np.ndarray:
        """The pixels about the pivot."""
        number, z, y, x = self.draws.position_n4[index].tolist()
        volume_zyx, size = self.volumes[number], int(2 * half) + 1
        z, y, x = (a + b for a, b in zip((z, y, x), self.starts[number], strict=True))
        y, x = (n + self.margin - anchor(self.window) + int(self.pivot - half) for n in (y, x))
        return volume_zyx[channel_slices(z, len(volume_zyx), self.channels), y : y + size, x : x + size]

    def _turn(self, square_cyx: np.ndarray, angle: float, flip: bool, half: float) -> np.ndarray:
        """Quarter turns: `numpy.rot90`, a mirror image, and the window of the square."""
        turned = np.rot90(square_cyx, round(angle / 90), (1, 2))
        turned = turned[:, :, ::-1] if flip else turned
        first = int(half - self.pivot)
        return turned[:, first : first + self.window, first : first + self.window]

    def _places(self, angle: float, flip: bool) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns, counted from the pivot."""
        i, j = np.mgrid[: self.window, : self.window] - self.pivot
        j = -j if flip else j
        cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        return cos * i + sin * j, cos * j - sin * i

    def _grid_sample(self, square_cyx: np.ndarray, angle: float, flip: bool, half: float) -> np.ndarray:
        row_yx, column_yx = self._places(angle, flip)
        grid_yx2 = torch.from_numpy(np.stack([column_yx, row_yx], -1) / half).float()
        image_bcyx = torch.from_numpy(square_cyx.astype(np.float32))[None]
        return grid_sample(image_bcyx, grid_yx2[None], align_corners=True)[0].numpy()

    def _map_coordinates(self, square_cyx: np.ndarray, angle: float, flip: bool, half: float) -> np.ndarray:
        places = np.stack(self._places(angle, flip)) + half
        return np.stack([map_coordinates(plane.astype(np.float32), places, order=1) for plane in square_cyx])


def batches(data: BlockDataModule, workers: int, way: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches of blocks and labels from a DataLoader, without end."""
    dataset = ConventionalBlocks(data, way)
    sampler = BlockSampler(len(dataset), data.batch_size, seed=data.seed)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)  # type: ignore[arg-type]
    while True:
        yield from (batch for batch in loader if len(batch[1]) == data.batch_size)


def largest_difference(data: BlockDataModule, way: str) -> float:
    """Between the first conventional batch and ours, in normalised grey values."""
    ours = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    image_bcyx, label_b = next(batches(data, 0, way))
    if not torch.equal(label_b, ours["label"].cpu()):
        return float("inf")
    return float((image_bcyx - ours["image"].cpu()).abs().max())
