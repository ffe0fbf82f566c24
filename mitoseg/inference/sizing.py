"""Memory: how much may be used, how much tensors take, and the largest tile that fits."""

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

Tile = tuple[int, int, int]
HOST_SHARE = 0.5  # of the free memory, taken unless the user says otherwise
HEAPS = 50 * 10**6  # bytes that the threads' heaps keep besides the tiles

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
