"""How large a tile may be, and how much work a volume is: the method runs once on tensors without voxels ("meta")."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mitoseg.control_groups import memory_available
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference.methods import Blend, Method, Window, on_meta
from mitoseg.inference.prepare import Prediction
from mitoseg.inference.views import View, along_z, gather_bytes
from mitoseg.networks.kinds import input_channels
from mitoseg.volumes import CHANNEL_OFFSETS, Volume
from mitoseg.volumes.stored import CACHE_BYTES

Tile = tuple[int, int, int]
TILE_VOXELS = {"cpu": 2**20, "cuda": 2**23}  # up to which thin slices go together; a GPU needs more to be busy
CUBE_VOXELS = 2**24  # up to which tiles are as thick as they are wide, where volumes are predicted along each axis
WINDOW_VOXELS = 2**16  # the same for the literal window, whose voxels take a thousand times as long
LARGEST_SIDE = 4096  # the longest side of a tile along y and x
VOXEL_BYTES = 32  # host memory for each voxel of a tile: read ahead, log-odds, probability, output
GPU_SHARE, HOST_SHARE = 0.8, 0.5  # of the free memory, taken unless the user says otherwise
OVERHEAD = {"cpu": 1.5, "cuda": 1.25}  # for each byte of tensors: on a CPU what was freed stays for a while
HEAPS = 50 * 10**6  # bytes that the threads' heaps keep besides the tiles
ASSEMBLING = 4  # copies of a tile's image while its channels are put together and normalised


class Sizing:
    """What a prediction of a volume takes, seen in each of its views."""

    def __init__(self, prediction: Prediction, volume: Volume, views: Sequence[View]) -> None:
        self.prediction, self.volume, self.views = prediction, volume, views
        self.device = next(prediction.network.parameters()).device
        self.ndim = views[0].method.ndim
        self.upright = along_z(prediction.tta)
        methods = views[0].method.parts
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
        gathered = gather_bytes(self.prediction.save, self.prediction.consensus, self._answers) * math.prod(tile)
        return OVERHEAD.get(self.device.type, 1.5) * most + (gathered if self._answers > 1 else 0)

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
        if self.prediction.tile and not self._blend:
            return self.prediction.tile
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


_TAKEN_APART = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("max_pool2d", "max_pool3d", "linear", "matmul", "einsum", "scaled_dot_product_attention"),
}
"""Functions without a formula for their operations, or that make more than they return (the places of maxima)."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(value: object) -> int:
    """Bytes from a number or a text such as ``4GB`` or ``500 MiB``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(value).lower())
    count = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if count <= 0:
        raise UserError("not an amount of memory", value, "write for instance memory=4GB")
    return count


def used_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def budget_bytes(memory: object | None, *, workers: int = 1, besides: int = 0) -> int:
    """Bytes that tiles may take besides what the process has already.

    ``memory`` is for all ``workers`` of this machine and ``besides`` for their parent; None: a share of what is free.
    """
    if memory is None:
        return int(HOST_SHARE * memory_available()) // workers
    return (parse_bytes(memory) - besides) // workers - used_bytes() - HEAPS


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of living tensors, ``now`` and at their ``peak``, and the floating-point ``operations``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.operations = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Count what an operation makes."""
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None and func.overloadpacket.__name__ in _TAKEN_APART:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        if any(kind in func.name() for kind in ("conv", "pool")):
            last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(args[0].ndim, torch.contiguous_format)
            if not (args[0].is_contiguous() or args[0].is_contiguous(memory_format=last)):
                self.peak = max(self.peak, self.now + args[0].nbytes)  # a view with gaps, which they copy first
        return result

    def remembering(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that is run once for each shape, and from then on counted from memory."""
        known: dict[Any, tuple[Any, int, int, int]] = {}

        def run(image: torch.Tensor) -> torch.Tensor:
            key = (image.shape, image.stride(), image.dtype)
            before, most, done = self.now, self.peak, self.operations
            if key in known:
                like, held, peak, operations = known[key]
                self.peak, self.operations = max(most, before + peak), done + operations
                answer = torch.empty_strided(**like)
                self._count(answer.untyped_storage(), held)
                return answer
            self.peak = before
            answer = function(image)
            like = {"size": answer.shape, "stride": answer.stride(), "dtype": answer.dtype, "device": "meta"}
            known[key] = (like, self.now - before, self.peak - before, self.operations - done)
            self.peak = max(most, self.peak)
            return answer

        return run

    def _count(self, storage: torch.UntypedStorage, size: int | None = None) -> None:
        seen = self._seen.setdefault(storage, 0)
        more = (storage.nbytes() if size is None else size) - seen
        if more > 0:
            self._seen[storage] += more
            self.now += more
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._count_freed, more)

    def _count_freed(self, size: int) -> None:
        self.now -= size


def largest_tile(
    shape: Sequence[int],
    cost: Callable[[Tile], float],
    budget: float,
    *,
    first: Tile,
    cube: bool = False,
) -> Tile:
    """The largest tile, up to ``first``, whose bytes fit a budget, found by halving its longest axis repeatedly.

    z counts eightfold, as slices are cheap to take one by one, unless all axes are alike (``cube``). Sides that are
    cut are multiples of 16, without ``cube`` not z.
    """
    tile = [min(a, b) for a, b in zip(first, shape, strict=True)]
    while (needed := cost((tile[0], tile[1], tile[2]))) > budget:
        axis = max(range(3), key=lambda i: tile[i] * (8 if i == 0 and not cube else 1) if tile[i] > 1 else 0)
        parts = 2 * math.ceil(shape[axis] / tile[axis])
        step = 1 if axis == 0 and not cube else 16
        smaller = math.ceil(shape[axis] / parts / step) * step
        if smaller >= tile[axis]:
            enough = math.ceil((used_bytes() + HEAPS + needed) / 1e8 + 0.2) / 10
            what = f"too little memory: the smallest tile needs {needed / 1e6:.0f} MB"
            raise UserError(what, f"{budget / 1e6:.0f} MB are left", f"give memory={enough:.1f}GB or more")
        tile[axis] = smaller
    return (tile[0], tile[1], tile[2])
