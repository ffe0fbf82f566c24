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
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.inference.methods import Blend, Dense
from mitoseg.inference.precision import computing
from mitoseg.inference.prepare import Prediction
from mitoseg.inference.sizing import Sizing, Tile, budget_bytes
from mitoseg.inference.views import Grey, assemble, check_answers, gather, make_views, read_grey
from mitoseg.networks.kinds import input_channels
from mitoseg.volumes import Volume, channel_slices
from mitoseg.volumes.base import BoxWriter
from mitoseg.volumes.padding import Padding


class Predictor:
    """One network on one volume: what to read for a tile, and the log-odds of its voxels."""

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
        self.sizing = Sizing(prediction, volume, self.views)
        self.operations, self.choose_tile = self.sizing.operations, self.sizing.choose_tile
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
        along_z = self.ndim == 2 and self.sizing.upright and write.shape[0] > 1
        axis, sizes = 0 if along_z else int(np.argmax(write.shape)), list(write.shape)
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
        free = self.ndim == 2 and self.sizing.upright  # slices go through the network one by one, or as many as fit
        sizes = (write.shape[0], *self.whole_tile[1:]) if free else self.whole_tile
        return Box(write.start, tuple(a + n for a, n in zip(write.start, sizes, strict=True)))


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
