"""Timing on a machine that others use too: what is compared takes turns, and the best turn counts.

    turn      1               2               3
    side    A     B     C   A     B     C   A     B     C      each as often as fills its share of the sample

A disturbance so hits all sides alike, and one turn without it is enough.
"""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Sample:
    """How long is measured.

    Attributes:
        seconds: For each side, over all turns; a call that takes longer is made once in each turn.
        turns: How often the sides take turns.
    """

    seconds: float
    turns: int


@dataclass(frozen=True)
class Side:
    """Something to time.

    Attributes:
        call: Does it once.
        context: Entered around the calls of a turn.
    """

    call: Callable[[], object]
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    def seconds(self, calls: int, device: torch.device) -> float:
        """Seconds for one call, the mean of some."""
        synchronize(device)
        start = time.perf_counter()
        with torch.inference_mode(), self.context():
            for _ in range(calls):
                self.call()
        synchronize(device)
        return (time.perf_counter() - start) / calls


class Turns(list[float]):
    """Seconds for one call in each turn."""

    @property
    def best(self) -> float:
        """The least disturbed turn."""
        return min(self)

    @property
    def median(self) -> float:
        """The usual turn."""
        return median(self)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(sides: Mapping[str, Side], device: torch.device, sample: Sample) -> dict[str, Turns]:
    """Time sides in turns, after two calls of each to warm up."""
    calls = {}
    for name, side in sides.items():
        side.seconds(2, device)  # compiles, allocates
        calls[name] = max(1, math.ceil(sample.seconds / sample.turns / side.seconds(1, device)))
    turns = {name: Turns() for name in sides}
    for _ in range(sample.turns):
        for name, side in sides.items():
            turns[name].append(side.seconds(calls[name], device))
    return turns


def product(size: int, precision: str, device: torch.device) -> Side:
    """The product of two square matrices: 2 size^3 operations."""
    a, b = (torch.randn(size, size, device=device).to(TYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)
    return Side(lambda: torch.mm(a, b, out=out))


def measure_ceiling(precision: str, sizes: Sequence[int], device: torch.device, sample: Sample) -> dict[str, float]:
    """Operations per second of matrix products by size (as text: a JSON key), the fastest last."""
    sides = {str(size): product(size, precision, device) for size in sizes}
    turns = take_turns(sides, device, sample)
    return dict(sorted(((s, 2 * int(s) ** 3 / t.best) for s, t in turns.items()), key=lambda pair: pair[1]))


def measure_bandwidth(device: torch.device, sample: Sample) -> float:
    """Bytes per second, read and written, of a copy within a device's memory."""
    source = torch.empty(2**28, device=device)
    target = torch.empty_like(source)
    turns = take_turns({"copy": Side(lambda: target.copy_(source))}, device, sample)
    return 2 * source.nbytes / turns["copy"].best


def measure_link(device: torch.device, sample: Sample) -> dict[str, float]:
    """Bytes per second to a device and back, from and to pinned memory."""
    host, there = torch.empty(2**26).pin_memory(), torch.empty(2**26, device=device)
    sides = {"to": Side(lambda: there.copy_(host)), "back": Side(lambda: host.copy_(there))}
    return {name: host.nbytes / turns.best for name, turns in take_turns(sides, device, sample).items()}


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, each tensor once for each operation that is no view.

    Attributes:
        bytes: So far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch's own signature."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
            self.bytes += sum({id(t): t.nbytes for t in tensors}.values())
        return result


def count_work(call: Callable[[], object]) -> dict[str, int]:
    """Floating-point operations (two for a multiplication with its addition) and bytes moved; best on "meta"."""
    operations, traffic = FlopCounterMode(display=False), Traffic()
    with torch.inference_mode(), operations, traffic:
        call()
    return {"operations": operations.get_total_flops(), "bytes": traffic.bytes}


def name_processor() -> str:
    """The CPU's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
