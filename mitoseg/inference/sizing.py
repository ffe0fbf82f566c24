"""How large a tile may be, and how much work a volume is: from a rehearsal of the method without voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from mitoseg.geometry import Box
from mitoseg.inference.blend import Blend
from mitoseg.inference.gather import gather_bytes
from mitoseg.inference.members import on_meta, parts
from mitoseg.inference.memory import ASSEMBLING, OVERHEAD, LiveBytes, Tile, largest_tile
from mitoseg.inference.protocol import Method, input_channels
from mitoseg.inference.symmetry import along_z
from mitoseg.inference.views import View
from mitoseg.inference.window import Window
from mitoseg.volumes import CHANNEL_OFFSETS, Volume
from mitoseg.volumes.reading import CACHE_BYTES

if TYPE_CHECKING:
    from mitoseg.inference.predict import Prediction

TILE_VOXELS = {"cpu": 2**20, "cuda": 2**23}
"""Thin slices are taken several at a time up to so many voxels; a GPU needs more to be busy."""
CUBE_VOXELS = 2**24
"""Tiles of volumes that are predicted along each axis are as thick as they are wide, up to so many voxels."""
WINDOW_VOXELS = 2**16
"""The same for the literal window, whose voxels take a thousand times as long."""
LARGEST_SIDE = 4096
"""The longest side of a tile along y and x."""
VOXEL_BYTES = 32
"""Host memory for each voxel of a tile besides the network: read ahead, log-odds, probability, output."""
GPU_SHARE = 0.8
"""Of a GPU's free memory."""


class Sizing:
    """See the module.

    Args:
        prediction: The network and how to use it.
        volume: The image.
        views: Of the image.
    """

    def __init__(self, prediction: Prediction, volume: Volume, views: Sequence[View]) -> None:
        self.prediction, self.volume, self.views = prediction, volume, views
        self.device = next(prediction.network.parameters()).device
        self.ndim = views[0].method.ndim
        self.upright = along_z(prediction.tta)
        methods = parts(views[0].method)
        self._blend = next((method for method in methods if isinstance(method, Blend)), None)
        self._window = isinstance(methods[0], Window)
        self._answers = len(views) * len(methods)
        # y and x changing places, and mirrored axes, make no difference here
        self._directions = {view.symmetry.order[0]: view for view in reversed(views)}
        self._live = LiveBytes()
        self._methods: dict[int, Method] = {}
        self._rehearsals: dict[tuple[Tile, int], Rehearsal] = {}

    def operations(self, tile: Tile) -> float:
        """Floating-point operations for the whole volume, in tiles of a shape."""
        share = math.prod(self.volume.shape) / math.prod(tile)
        total = sum(self._rehearse(tile, view).operations for view in self._directions.values())
        return total * share * len(self.views) / len(self._directions)

    def choose_tile(self, budget: float) -> Tile:
        """The largest tile that host and device have the memory for.

        Args:
            budget: Bytes of host memory that tiles may take.

        Raises:
            UserError: Not even the smallest tile fits.
        """
        first, shape = self._first_tile(), self.volume.shape
        if self.device.type == "cuda":
            free = GPU_SHARE * torch.cuda.mem_get_info(self.device)[0]
            first = largest_tile(shape, self.network_bytes, free, first=first, cube=not self.upright)
            return largest_tile(shape, self.buffer_bytes, budget, first=first, cube=not self.upright)
        return largest_tile(
            shape, lambda t: self.network_bytes(t) + self.buffer_bytes(t), budget, first=first, cube=not self.upright
        )

    def network_bytes(self, tile: Tile) -> float:
        """Memory that the network takes for a tile, from a rehearsal without voxels."""
        rehearsals = [self._rehearse(tile, view) for view in self._directions.values()]
        most = max(max(one.peak, ASSEMBLING * one.image_bytes) for one in rehearsals)
        gathered = gather_bytes(self.prediction.save, self.prediction.consensus, self._answers) * math.prod(tile)
        return OVERHEAD.get(self.device.type, 1.5) * most + (gathered if self._answers > 1 else 0)

    def buffer_bytes(self, tile: Tile) -> float:
        """Memory for what is read ahead, written behind, and kept of the file that was decoded."""
        each = [self._grey_bytes(tile, view) for view in self._directions.values()]
        greys = sum(each) * len(self.views) / len(each)
        kept = min(CACHE_BYTES, self.volume.box.size * self.volume.dtype.itemsize)
        scratch = max(self._scratch_bytes(tile, view) for view in self._directions.values())
        return kept + scratch + 2 * (greys + max(each)) + VOXEL_BYTES * math.prod(tile)

    def _grey_bytes(self, tile: Tile, view: View) -> float:
        """What is read of one view."""
        return self._reads(tile, view).size * self.volume.dtype.itemsize

    def _scratch_bytes(self, tile: Tile, view: View) -> int:
        """What reading takes for a while, such as the voxels that others are resampled from."""
        return view.volume.scratch_bytes(self._reads(tile, view).clip(view.volume.box))

    def _reads(self, tile: Tile, view: View) -> Box:
        """What is read of a view for a tile: with the neighbours of its slices, which are input channels."""
        read = view.method.reads(view.turn(self._middle(tile)))
        offsets = (0,) if self.ndim == 3 else CHANNEL_OFFSETS[self.prediction.channels]
        z, y, x = read.start
        return Box((z + min(offsets), y, x), (read.stop[0] + max(offsets), *read.stop[1:]))

    def _first_tile(self) -> Tile:
        """The tile to take where memory is no question."""
        if self.prediction.options.tile and not self._blend:
            return self.prediction.options.tile
        if not self.upright:
            return _cube(self.volume.shape, WINDOW_VOXELS if self._window else CUBE_VOXELS)
        y, x = (min(n, LARGEST_SIDE) for n in self.volume.shape[1:])
        if self._window:
            y = max(1, min(y, WINDOW_VOXELS // x))
        if self.ndim == 2:
            return (max(1, TILE_VOXELS.get(self.device.type, 2**20) // (y * x)), y, x)
        if self._blend:
            return (4 * self._blend.tile[0], y, x)
        return (64, min(y, 512), min(x, 512))

    def _middle(self, tile: Tile) -> Box:
        """The tile in the volume's middle, which has neighbours on all sides if any has."""
        starts = tuple(n // t // 2 * t for n, t in zip(self.volume.shape, tile, strict=True))
        stops = tuple(min(a + t, n) for a, t, n in zip(starts, tile, self.volume.shape, strict=True))
        return Box(starts, stops)

    def _rehearse(self, tile: Tile, view: View) -> Rehearsal:
        """Run the method on a tile of tensors that have a shape but no voxels, once for each shape of tile."""
        key = (tile, view.symmetry.order[0])
        if key in self._rehearsals:
            return self._rehearsals[key]
        dtype = torch.bfloat16 if self.prediction.precision == "bf16" else torch.float32
        if id(view.method) not in self._methods:
            self._methods[id(view.method)] = on_meta(view.method, dtype, self._live.remembering)
        method = self._methods[id(view.method)]
        write = view.turn(self._middle(tile))
        z, y, x = method.reads(write).shape
        channels = input_channels(self.prediction.network)
        shape = (z, channels, y, x) if self.ndim == 2 else (1, channels, z, y, x)
        layout = torch.channels_last if self.ndim == 2 else torch.channels_last_3d
        live = self._live
        live.peak, live.operations = live.now, 0
        with live, torch.inference_mode():
            image = torch.empty(shape, device="meta", dtype=dtype, memory_format=layout)
            method(image, write)
        weights = [weight for part in parts(method) for weight in part.network.parameters()]  # type: ignore[attr-defined]
        peak = live.peak + sum(4 * weight.numel() + weight.nbytes for weight in weights)  # reordered, and cast
        found = self._rehearsals[key] = Rehearsal(peak, live.operations, 4 * image.numel())
        return found


class Rehearsal(NamedTuple):
    """What a method takes for a tile: bytes of tensors at most, operations, and bytes of the float32 image."""

    peak: int
    operations: int
    image_bytes: int


def _cube(shape: Sequence[int], voxels: int) -> Tile:
    """The largest tile with sides as equal as a volume allows, up to a number of voxels or so.

    >>> _cube((500, 500, 500), 2**24), _cube((14, 768, 1024), 2**24)
    ((256, 256, 256), (14, 768, 1024))
    """
    side = round(voxels ** (1 / 3))
    while side < max(shape) and math.prod(min(n, 2 * side) for n in shape) <= voxels:
        side *= 2
    z, y, x = (min(n, side) for n in shape)
    return (z, y, x)
