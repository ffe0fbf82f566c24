"""A volume through a network, tile by tile, into a writer; reading, computing and writing at the same time.

read      | 1 | 2 | 3 | 4 |
compute       |  1  |  2  |  3  |  4  |
write               | 1 |   | 2 |   | 3 |   | 4 |
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.inference.methods import Blend, Dense, Method, Window, on_meta
from mitoseg.inference.precision import computing
from mitoseg.inference.prepare import Prediction
from mitoseg.inference.sizing import LiveBytes, Tile, budget_bytes, largest_tile
from mitoseg.inference.views import (
    Grey,
    View,
    along_z,
    assemble,
    check_answers,
    gather,
    gather_bytes,
    make_views,
    read_grey,
)
from mitoseg.networks.kinds import input_channels
from mitoseg.volumes import CHANNEL_OFFSETS, Volume, channel_slices
from mitoseg.volumes.base import BoxWriter
from mitoseg.volumes.padding import Padding
from mitoseg.volumes.stored import CACHE_BYTES

TILE_VOXELS = {"cpu": 2**20, "cuda": 2**23}  # up to which thin slices go together; a GPU needs more to be busy
CUBE_VOXELS = 2**24  # up to which tiles are as thick as they are wide, where volumes are predicted along each axis
WINDOW_VOXELS = 2**16  # the same for the literal window, whose voxels take a thousand times as long
LARGEST_SIDE = 4096  # the longest side of a tile along y and x
VOXEL_BYTES = 32  # host memory for each voxel of a tile: read ahead, log-odds, probability, output
GPU_SHARE = 0.8  # of its free memory, taken at most
OVERHEAD = {"cpu": 1.5, "cuda": 1.25}  # for each byte of tensors: on a CPU what was freed stays for a while
ASSEMBLING = 4  # copies of a tile's image while its channels are put together and normalised


class Predictor:
    """One network on one volume: what to read for a tile, its log-odds, and the memory and work that it takes."""

    def __init__(self, prediction: Prediction, volume: Volume) -> None:
        self.prediction, self.volume = prediction, volume
        self.device = next(prediction.network.parameters()).device
        made, taken = len(channel_slices(0, 1, prediction.channels)), input_channels(prediction.network)
        if made != taken:
            what = f"the checkpoint's network takes {taken} channels, its channels={prediction.channels} make"
            raise UserError(what, made, "use another checkpoint")
        self.views = make_views(prediction, volume)
        self.methods = self.views[0].method.parts
        check_answers(prediction.save, prediction.consensus, len(self.views) * len(self.methods))
        self.ndim = self.methods[0].ndim
        self.upright = along_z(prediction.tta)
        # y and x changing places, and mirrored axes, make no difference to the work
        self._directions = {view.symmetry.order[0]: view for view in reversed(self.views)}
        self._live = LiveBytes()
        self._on_meta: dict[int, Method] = {}
        self._rehearsals: dict[tuple[Tile, int], Rehearsal] = {}
        self.whole_tile: Tile | None = None  # compiled code is made for one shape: tiles at the border are filled up
        self._limit = math.inf
        self._compiled = False

    def read(self, write: Box) -> list[Grey]:
        """Read what the voxels of a box need, once for each symmetry."""
        write = self._filled_up(write)
        return [
            read_grey(view.volume, view.method.reads(view.turn(write)), self.prediction.channels, self.ndim)
            for view in self.views
        ]

    def compute(self, greys: Sequence[Grey], write: Box) -> npt.NDArray[np.float32]:
        """Log-odds (z, y, x) of a box, or their deviation, from what `read` returned; in parts if memory is short."""
        if write.size <= self._limit:
            try:
                return self._compute(greys, write)
            except torch.OutOfMemoryError:
                self._limit = write.size // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        by_slices = self.ndim == 2 and self.upright and write.shape[0] > 1
        axis, sizes = 0 if by_slices else int(np.argmax(write.shape)), list(write.shape)
        if sizes[axis] < 2:
            raise UserError("the GPU's memory is too small for a single voxel", write.shape, "use accelerator=cpu")
        sizes[axis] = -(-sizes[axis] // 2)
        result = np.empty(write.shape, np.float32)
        for part in tiles(write, sizes):
            result[part.inside(write).slices] = self.compute(self.read(part), part)
        return result

    def _compute(self, greys: Sequence[Grey], write: Box) -> npt.NDArray[np.float32]:
        prediction, filled = self.prediction, self._filled_up(write)
        finite = torch.ones((), dtype=torch.bool, device=self.device)

        def answers() -> Iterator[Tensor]:
            for view, grey in zip(self.views, greys, strict=True):
                image = assemble(grey, prediction.normalization, self.device, self.ndim)
                for odds in view.method.each(image, view.turn(filled)):
                    ends = torch.stack([odds.amin(), odds.amax()])  # which pass NaN on, ten times as fast as isfinite
                    finite.logical_and_(torch.isfinite(ends).all())  # read when all is done: a GPU would be waited for
                    yield view.symmetry.turn_tensor_back(odds)

        with torch.inference_mode(), computing(prediction.precision, self.device, compiled=self._compiled):
            found = gather(answers(), prediction.save, prediction.consensus, prediction.calibration)
            result: npt.NDArray[np.float32] = found[write.inside(filled).slices].cpu().numpy()
        if not finite:
            what = f"the network outputs NaN or infinity in the tile (z, y, x) = {write} of"
            remedy = "give precision=fp32" if prediction.precision != "fp32" else "use another checkpoint"
            raise UserError(what, self.volume.path, f"{remedy}, and check the image there")
        return result

    def encode(self, write: Box, found: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """The voxels to save of a box, from what `compute` returned; 0 in padding, except in raw log-odds."""
        encoded = self.prediction.encode(found)
        padding = self.volume.padding
        if self.prediction.save != "log_odds" and isinstance(
            padding, Padding
        ):  # not of resampled volumes, see `Restored`
            padding_zyx = padding.find(write)
            if padding_zyx is not None:
                encoded[padding_zyx] = 0
        return encoded

    def compile(self, tile: Tile) -> None:
        """Compile the network for tiles of one shape."""
        torch._dynamo.reset()  # after eight shapes, of several volumes, it would give up
        for method in {id(part.network): part for view in self.views for part in view.method.parts}.values():
            if isinstance(method, Dense):
                method.network.compile_segments()
            else:
                method.network.compile(dynamic=False)
        self._compiled = True
        self.whole_tile = None if isinstance(self.methods[0], Blend) else tile

    def _filled_up(self, write: Box) -> Box:
        """A box, beyond the volume where it is smaller than a whole tile and code is compiled for that."""
        if self.whole_tile is None:
            return write
        free = self.ndim == 2 and self.upright  # slices go through the network one by one, or as many as fit
        sizes = (write.shape[0], *self.whole_tile[1:]) if free else self.whole_tile
        return Box(write.start, tuple(a + n for a, n in zip(write.start, sizes, strict=True)))

    def operations(self, tile: Tile) -> float:
        """Floating-point operations for the whole volume, in tiles of a shape."""
        share = math.prod(self.volume.shape) / math.prod(tile)
        total = sum(self._rehearse(tile, view).operations for view in self._directions.values())
        return total * share * len(self.views) / len(self._directions)

    def choose_tile(self, budget: float) -> Tile:
        """The largest tile that the device and ``budget`` bytes of host memory allow."""
        fit, first = partial(largest_tile, self.volume.shape, cube=not self.upright), self._first_tile()
        if self.device.type == "cuda":
            free = GPU_SHARE * torch.cuda.mem_get_info(self.device)[0]
            return fit(self.buffer_bytes, budget, first=fit(self.network_bytes, free, first=first))
        return fit(lambda tile: self.network_bytes(tile) + self.buffer_bytes(tile), budget, first=first)

    def network_bytes(self, tile: Tile) -> float:
        """Memory that the network takes for a tile."""
        rehearsals = [self._rehearse(tile, view) for view in self._directions.values()]
        most = max(max(one.peak, ASSEMBLING * one.image_bytes) for one in rehearsals)
        answers = len(self.views) * len(self.methods)
        gathered = gather_bytes(self.prediction.save, self.prediction.consensus, answers) * math.prod(tile)
        return OVERHEAD.get(self.device.type, 1.5) * most + (gathered if answers > 1 else 0)

    def buffer_bytes(self, tile: Tile) -> float:
        """Memory for what is read ahead, written behind, kept of decoded files, and for reading itself."""
        views = self._directions.values()
        each = [self._reads(tile, view).size * self.volume.dtype.itemsize for view in views]
        greys = sum(each) * len(self.views) / len(each)
        kept = min(CACHE_BYTES, self.volume.box.size * self.volume.dtype.itemsize)
        scratch = max(view.volume.scratch_bytes(self._reads(tile, view).clip(view.volume.box)) for view in views)
        return kept + scratch + 2 * (greys + max(each)) + VOXEL_BYTES * math.prod(tile)

    def _reads(self, tile: Tile, view: View) -> Box:
        """What is read of a view for a tile, with the neighbouring slices that are input channels."""
        read = view.method.reads(view.turn(self._middle(tile)))
        offsets = (0,) if self.ndim == 3 else CHANNEL_OFFSETS[self.prediction.channels]
        z, y, x = read.start
        return Box((z + min(offsets), y, x), (read.stop[0] + max(offsets), *read.stop[1:]))

    def _first_tile(self) -> Tile:
        """The tile to take where memory is no question."""
        blend = next((method for method in self.methods if isinstance(method, Blend)), None)
        window = isinstance(self.methods[0], Window)
        if self.prediction.tile and not blend:
            return self.prediction.tile
        if not self.upright:
            return _cube(self.volume.shape, WINDOW_VOXELS if window else CUBE_VOXELS)
        y, x = (min(n, LARGEST_SIDE) for n in self.volume.shape[1:])
        if window:
            y = max(1, min(y, WINDOW_VOXELS // x))
        if self.ndim == 2:
            return (max(1, TILE_VOXELS.get(self.device.type, 2**20) // (y * x)), y, x)
        if blend:
            return (4 * blend.tile[0], y, x)
        return (64, min(y, 512), min(x, 512))

    def _middle(self, tile: Tile) -> Box:
        """The tile in the volume's middle, which has neighbours on all sides if any has."""
        starts = tuple(n // t // 2 * t for n, t in zip(self.volume.shape, tile, strict=True))
        stops = tuple(min(a + t, n) for a, t, n in zip(starts, tile, self.volume.shape, strict=True))
        return Box(starts, stops)

    def _rehearse(self, tile: Tile, view: View) -> Rehearsal:
        """Run the method on a tile of tensors that have a shape but no voxels ("meta"), once for each shape."""
        key = (tile, view.symmetry.order[0])
        if key in self._rehearsals:
            return self._rehearsals[key]
        dtype = torch.bfloat16 if self.prediction.precision == "bf16" else torch.float32
        if id(view.method) not in self._on_meta:
            self._on_meta[id(view.method)] = on_meta(view.method, dtype, self._live.remembering)
        method = self._on_meta[id(view.method)]
        write = view.turn(self._middle(tile))
        z, y, x = method.reads(write).shape
        channels = input_channels(self.prediction.network)
        shape = (z, channels, y, x) if self.ndim == 2 else (1, channels, z, y, x)
        layout = torch.channels_last if self.ndim == 2 else torch.channels_last_3d
        live = self._live
        live.peak, live.operations = live.now, 0
        with live, torch.inference_mode():
            image = torch.empty(shape, device="meta", dtype=dtype, memory_format=layout)
            try:
                method(image, write)
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
                what = f"the network fails on an image of this shape ({type(error).__name__}: {error})".split("\n")[0]
                raise UserError(what, shape, "give tile= of another size, or use another checkpoint") from error
        weights = [weight for part in method.parts for weight in part.network.parameters()]
        peak = live.peak + sum(4 * weight.numel() + weight.nbytes for weight in weights)  # reordered, and cast
        found = self._rehearsals[key] = Rehearsal(peak, live.operations, 4 * image.numel())
        return found


class Rehearsal(NamedTuple):
    """What a method takes for a tile: bytes of tensors at most, operations, and bytes of the float32 image."""

    peak: int
    operations: int
    image_bytes: int


def _cube(shape: Sequence[int], voxels: int) -> Tile:
    """The largest tile with sides as equal as a volume allows, up to about a number of voxels."""
    side = round(voxels ** (1 / 3))
    while side < max(shape) and math.prod(min(n, 2 * side) for n in shape) <= voxels:
        side *= 2
    z, y, x = (min(n, side) for n in shape)
    return (z, y, x)


def predict_volume(
    prediction: Prediction | Predictor,
    volume: Volume,
    writer: BoxWriter,
    *,
    box: Box | None = None,
    tile: Tile | None = None,
    done: Container[Box] = (),
    on_tile: Callable[[Box], None] | None = None,
) -> None:
    """Predict a volume, or one box of it, tile by tile, and hand it to a writer in order.

    ``tile`` is (z, y, x) voxels at a time, None by the free memory; ``done`` are tiles to leave out; the writer and
    ``on_tile`` get coordinates of the box. What lies around the box is still seen by the network.
    """
    predictor = prediction if isinstance(prediction, Predictor) else Predictor(prediction, volume)
    area = volume.check_box(box)
    parts = tiles(area, tile or predictor.choose_tile(budget_bytes(None)))

    def write(part: Box, found: npt.NDArray[np.float32]) -> None:
        inside = part.inside(area)
        writer.write(inside, predictor.encode(part, found))
        if on_tile is not None:
            on_tile(inside)

    missing = (part for part in parts if part.inside(area) not in done)
    run_overlapped(missing, predictor.read, lambda part, greys: predictor.compute(greys, part), write)


Item = TypeVar("Item")
Source = TypeVar("Source")
Result = TypeVar("Result")


def run_overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Source],
    compute: Callable[[Item, Source], Result],
    write: Callable[[Item, Result], None],
) -> None:
    """Read, compute and write every item, in order, each stage one item ahead of the next at most.

    The first exception ends the run; what was handed to the writer before it is still written.
    """
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        ahead = ((item, reader.submit(read, item)) for item in items)
        written: Future[None] | None = None
        for now, _ in itertools.pairwise(itertools.chain(ahead, [None])):  # the next one is being read
            assert now is not None
            result = compute(now[0], now[1].result())
            if written is not None:
                written.result()
            written = writer.submit(write, now[0], result)
        if written is not None:
            written.result()
