"""How much memory there is, what a tile needs of it, and the largest tile that fits.

The estimate is made before the first tile: the method runs once on tensors without voxels ("meta" tensors), and the
bytes that are alive at the same time are counted.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mitoseg.control_groups import memory_available
from mitoseg.errors import UserError

SHARE = 0.5
"""Of the free memory, taken unless the user says otherwise."""
OVERHEAD = {"cpu": 1.5, "cuda": 1.25}
"""Memory for each byte of tensors: on a CPU what was freed stays with the process for a while."""
HEAPS = 50 * 10**6
"""Bytes that the threads' heaps keep besides the tiles."""
ASSEMBLING = 4
"""Copies of a tile's image while its channels are put together and normalised."""
Tile = tuple[int, int, int]
_TAKEN_APART = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("max_pool2d", "max_pool3d", "linear", "matmul", "einsum", "scaled_dot_product_attention"),
}
"""What has no formula for its operations, or makes more than it returns (the places of the maxima, 8 bytes each)."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(value: object) -> int:
    """Bytes that a text such as ``4GB``, ``500 MiB`` or a number says.

    Raises:
        UserError: It says nothing of the kind, or nothing above zero.

    >>> parse_bytes("1GB"), parse_bytes("1.5 GiB"), parse_bytes(200)
    (1000000000, 1610612736, 200)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(value).lower())
    count = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if count <= 0:
        raise UserError("not an amount of memory", value, "write for instance memory=4GB")
    return count


def used_bytes() -> int:
    """Memory that this process has now."""
    return int(psutil.Process().memory_info().rss)


def budget_bytes(memory: object | None, *, workers: int = 1, besides: int = 0) -> int:
    """Bytes that tiles may take besides what the process has already.

    Args:
        memory: What this process and its like may take together, or None for a share of what is free.
        workers: Of this machine that share it, this process among them.
        besides: Bytes of it that the process that started them takes.

    Raises:
        UserError: It is no amount of memory.
    """
    if memory is None:
        return int(SHARE * memory_available()) // workers
    return (parse_bytes(memory) - besides) // workers - used_bytes() - HEAPS


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors made inside, as long as they live, and the operations that make them.

    Attributes:
        now: Bytes.
        peak: The most at one time.
        operations: In floating point, of convolutions and matrix products.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.operations = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Torch's own signature."""
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
        if any(kind in func.name() for kind in ("conv", "pool")) and _has_gaps(args[0]):
            self.peak = max(self.peak, self.now + args[0].nbytes)  # they copy it first
        return result

    def remembering(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that is run once for each shape; after that it is counted as it was then."""
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
            weakref.finalize(storage, self._forget, more)

    def _forget(self, size: int) -> None:
        self.now -= size


def _has_gaps(image: torch.Tensor) -> bool:
    """Whether a tensor is a view that leaves out some of what lies between its first and last number."""
    last = torch.channels_last if image.ndim == 4 else torch.channels_last_3d
    return not (image.is_contiguous() or (image.ndim in (4, 5) and image.is_contiguous(memory_format=last)))


def largest_tile(
    shape: Sequence[int],
    cost: Callable[[Tile], float],
    budget: float,
    *,
    first: Tile,
    multiple: int = 16,
    cube: bool = False,
) -> Tile:
    """The largest tile whose cost is within a budget, found by halving its longest axis again and again.

    Its z counts eightfold, as slices are cheap to take one by one, unless ``cube`` says that all axes are alike.

    Args:
        shape: Of the volume (z, y, x).
        cost: Bytes that a tile needs.
        budget: Bytes there are.
        first: The largest tile to consider.
        multiple: Where y and x are cut, tiles are multiples of it; with ``cube`` also along z.
        cube: Treat all axes alike.

    Raises:
        UserError: Not even the smallest tile fits.

    >>> largest_tile((1, 1000, 1000), math.prod, 3e5, first=(1, 1000, 1000))
    (1, 512, 512)
    """
    tile = [min(a, b) for a, b in zip(first, shape, strict=True)]
    while (needed := cost((tile[0], tile[1], tile[2]))) > budget:
        axis = max(range(3), key=lambda i: tile[i] * (8 if i == 0 and not cube else 1) if tile[i] > 1 else 0)
        parts = 2 * math.ceil(shape[axis] / tile[axis])
        step = 1 if axis == 0 and not cube else multiple
        smaller = math.ceil(shape[axis] / parts / step) * step
        if smaller >= tile[axis]:
            enough = math.ceil((used_bytes() + HEAPS + needed) / 1e8 + 0.2) / 10
            remedy = f"give memory={enough:.1f}GB or more"
            what = f"too little memory: the smallest tile needs {needed / 1e6:.0f} MB"
            raise UserError(what, f"{budget / 1e6:.0f} MB are left", remedy)
        tile[axis] = smaller
    return (tile[0], tile[1], tile[2])
