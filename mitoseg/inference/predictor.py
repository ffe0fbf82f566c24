"""One network on one volume: what to read for a tile, and the log-odds of its voxels."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.inference.blend import Blend
from mitoseg.inference.dense import Dense
from mitoseg.inference.memory import ASSEMBLING, OVERHEAD, LiveBytes, Tile, largest_tile
from mitoseg.inference.methods import Method, make_method
from mitoseg.inference.precision import computing
from mitoseg.inference.protocol import input_channels
from mitoseg.inference.reading import Grey, assemble, read_grey
from mitoseg.inference.symmetry import Symmetry, TurnedVolume, symmetries
from mitoseg.inference.window import Window
from mitoseg.volumes import Volume, channel_slices
from mitoseg.volumes.reading import CACHE_BYTES

if TYPE_CHECKING:
    from mitoseg.inference.predict import Prediction

TILE_VOXELS = {"cpu": 2**20, "cuda": 2**23}
"""Thin slices are taken several at a time up to so many voxels; a GPU needs more to be busy."""
WINDOW_VOXELS = 2**16
"""The same for the literal window, whose voxels take a thousand times as long."""
LARGEST_SIDE = 4096
"""The longest side of a tile along y and x."""
VOXEL_BYTES = 32
"""Host memory for each voxel of a tile besides the network: read ahead, log-odds, probability, output."""
GPU_SHARE = 0.8
"""Of a GPU's free memory."""


@dataclass(frozen=True)
class View:
    """The volume as one symmetry turns it, and the method on it."""

    symmetry: Symmetry
    volume: Volume
    method: Method


class Predictor:
    """See the module; made for one volume.

    Args:
        prediction: The network and how to use it.
        volume: The image.

    Raises:
        UserError: The method does not fit the network, or the network the volume.
    """

    def __init__(self, prediction: Prediction, volume: Volume) -> None:
        self.prediction, self.volume = prediction, volume
        self.device = next(prediction.network.parameters()).device
        _check_channels(prediction)
        self.views = [self._view(symmetry) for symmetry in symmetries(prediction.tta)]
        self.ndim = self.views[0].method.ndim
        self.whole_tile: Tile | None = None  # compiled code is made for one shape: tiles at the border are filled up
        self._limit = math.inf
        self._compiled = False

    def _view(self, symmetry: Symmetry) -> View:
        turned = TurnedVolume(self.volume, symmetry) if symmetry != Symmetry() else self.volume
        method = make_method(self.prediction.method, self.prediction.network, turned.shape, self.prediction.options)
        return View(symmetry, turned, method)

    def read(self, write: Box) -> list[Grey]:
        """Read what the voxels of a box need, once for each symmetry.

        Raises:
            UserError: The file is damaged, or holds NaN or infinity.
        """
        write = self._filled_up(write)
        return [
            read_grey(view.volume, view.method.reads(self._turn(view, write)), self.prediction.channels, self.ndim)
            for view in self.views
        ]

    def compute(self, greys: Sequence[Grey], write: Box) -> npt.NDArray[np.float32]:
        """Log-odds (z, y, x) of a box from what `read` gave; where a GPU's memory is too small, in parts.

        Raises:
            UserError: The memory is too small for the smallest part.
        """
        if write.size <= self._limit:
            try:
                return self._compute(greys, write)
            except torch.OutOfMemoryError:
                self._limit = write.size // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        parts = _halves(write, self.ndim)
        result = np.empty(write.shape, np.float32)
        for part in parts:
            result[part.inside(write).slices] = self.compute(self.read(part), part)
        return result

    def _compute(self, greys: Sequence[Grey], write: Box) -> npt.NDArray[np.float32]:
        total: Tensor | None = None
        filled = self._filled_up(write)
        with torch.inference_mode(), self._computing():
            for view, grey in zip(self.views, greys, strict=True):
                image = assemble(grey, self.prediction.normalization, self.device, self.ndim)
                turned = view.method(image, self._turn(view, filled))
                odds = view.symmetry.turn_tensor_back(turned)
                total = odds if total is None else total + odds
        assert total is not None
        mean = (total / len(self.views))[write.inside(filled).slices]
        result: npt.NDArray[np.float32] = mean.cpu().numpy()
        return result

    def _computing(self) -> AbstractContextManager[Any]:
        return computing(self.prediction.precision, self.device, compiled=self._compiled)

    def compile(self, tile: Tile) -> None:
        """Compile the network for tiles of one shape."""
        if isinstance(self.views[0].method, Dense):
            for view in self.views:
                view.method.network.compile_segments()  # type: ignore[attr-defined]
        else:
            self.prediction.network.compile(dynamic=False)
        self._compiled = True
        self.whole_tile = None if isinstance(self.views[0].method, Blend) else tile

    def operations(self, tile: Tile) -> float:
        """Floating-point operations for the whole volume, in tiles of a shape."""
        counter = FlopCounterMode(display=False)
        with counter:
            self._rehearse(tile)
        share = math.prod(self.volume.shape) / math.prod(tile)
        return float(counter.get_total_flops()) * share * len(self.views)

    def choose_tile(self, budget: float) -> Tile:
        """The largest tile that host and device have the memory for.

        Args:
            budget: Bytes of host memory that tiles may take.

        Raises:
            UserError: Not even the smallest tile fits.
        """
        first = self._first_tile()
        if self.device.type == "cuda":
            free = GPU_SHARE * torch.cuda.mem_get_info(self.device)[0]
            first = largest_tile(self.volume.shape, self._network_bytes, free, first=first)
            return largest_tile(self.volume.shape, self._buffer_bytes, budget, first=first)
        return largest_tile(
            self.volume.shape, lambda t: self._network_bytes(t) + self._buffer_bytes(t), budget, first=first
        )

    def _first_tile(self) -> Tile:
        """The tile to take where memory is no question."""
        if self.prediction.options.tile and not isinstance(self.views[0].method, Blend):
            return self.prediction.options.tile
        y, x = (min(n, LARGEST_SIDE) for n in self.volume.shape[1:])
        if isinstance(self.views[0].method, Window):
            y = max(1, min(y, WINDOW_VOXELS // x))
        if self.ndim == 2:
            return (max(1, TILE_VOXELS.get(self.device.type, 2**20) // (y * x)), y, x)
        if isinstance(self.views[0].method, Blend):
            return (4 * self.views[0].method.tile[0], y, x)
        return (64, min(y, 512), min(x, 512))

    def _network_bytes(self, tile: Tile) -> float:
        """Memory that the network takes for a tile, from a rehearsal without voxels."""
        live = LiveBytes()
        with live:
            image_bytes = self._rehearse(tile)
        return OVERHEAD.get(self.device.type, 1.5) * max(live.peak, ASSEMBLING * image_bytes)

    def _buffer_bytes(self, tile: Tile) -> float:
        """Memory for what is read ahead, written behind, and kept of the file that was decoded."""
        read = self.views[0].method.reads(self._middle(tile))
        grey = read.size * self.volume.dtype.itemsize * (1 if self.ndim == 3 else 1 + 2 / tile[0])
        kept = min(CACHE_BYTES, self.volume.box.size * self.volume.dtype.itemsize)
        return kept + 2 * grey * (len(self.views) + 1) + VOXEL_BYTES * math.prod(tile)

    def _middle(self, tile: Tile) -> Box:
        """The tile in the volume's middle, which has neighbours on all sides if any has."""
        starts = tuple(n // t // 2 * t for n, t in zip(self.volume.shape, tile, strict=True))
        stops = tuple(min(a + t, n) for a, t, n in zip(starts, tile, self.volume.shape, strict=True))
        return Box(starts, stops)

    def _rehearse(self, tile: Tile) -> int:
        """Run the method on a tile of tensors that have a shape but no voxels; bytes of the tile's float32 image."""
        method: Any = self.views[0].method
        dtype = torch.bfloat16 if self.prediction.precision == "bf16" else torch.float32
        network = copy.deepcopy(method.network).to(device="meta", dtype=dtype)
        write = self._middle(tile)
        z, y, x = method.reads(write).shape
        channels = input_channels(self.prediction.network)
        shape = (z, channels, y, x) if self.ndim == 2 else (1, channels, z, y, x)
        layout = torch.channels_last if self.ndim == 2 else torch.channels_last_3d
        image = torch.empty(shape, device="meta", dtype=dtype, memory_format=layout)
        with torch.inference_mode():
            dataclasses.replace(method, network=network)(image, write)
        return 4 * image.numel()

    def _turn(self, view: View, write: Box) -> Box:
        return view.symmetry.turn(write, self.volume.shape)

    def _filled_up(self, write: Box) -> Box:
        """A box, beyond the volume where it is smaller than a whole tile in y or x and code is compiled for that."""
        if self.whole_tile is None:
            return write
        start = write.start
        sizes = (write.shape[0], *self.whole_tile[1:]) if self.ndim == 2 else self.whole_tile
        return Box(start, tuple(a + n for a, n in zip(start, sizes, strict=True)))


def _check_channels(prediction: Prediction) -> None:
    made = len(channel_slices(0, 1, prediction.channels))
    taken = input_channels(prediction.network)
    if made != taken:
        what = f"the checkpoint's network takes {taken} channels, its channels={prediction.channels} make"
        raise UserError(what, made, "use another checkpoint")


def _halves(write: Box, ndim: int) -> list[Box]:
    """A box in two parts, along z where the network works on slices.

    Raises:
        UserError: It is one voxel.
    """
    axis = 0 if ndim == 2 and write.shape[0] > 1 else int(np.argmax(write.shape))
    if write.shape[axis] < 2:
        raise UserError("the GPU's memory is too small for a single voxel", write.shape, "use accelerator=cpu")
    sizes = list(write.shape)
    sizes[axis] = -(-sizes[axis] // 2)
    return list(tiles(write, sizes))
