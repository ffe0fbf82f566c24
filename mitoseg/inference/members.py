"""An ensemble's members, each by a method of its own, and what concerns them one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mitoseg.geometry import Box
from mitoseg.inference.blend import Blend
from mitoseg.inference.protocol import Method
from mitoseg.networks import Ensemble


@dataclass(frozen=True)
class Members:
    """A `mitoseg.inference.protocol.Method`: the mean of the members' calibrated log-odds.

    Attributes:
        network: In eval mode.
        methods: One for each member, in order. They may read more or less around a box than one another.
    """

    network: Ensemble
    methods: tuple[Method, ...]

    @property
    def ndim(self) -> int:
        """2 or 3, the axes of all members."""
        return self.methods[0].ndim

    def reads(self, write: Box) -> Box:
        """What must be read for the voxels of a box: all that any member needs."""
        boxes = [method.reads(write) for method in self.methods]
        start = tuple(min(ends) for ends in zip(*(box.start for box in boxes), strict=True))
        return Box(start, tuple(max(ends) for ends in zip(*(box.stop for box in boxes), strict=True)))

    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds (z, y, x) of a box from the image that `reads` asks for: (z, C, Y, X) or (1, C, Z, Y, X)."""
        return torch.stack(list(self.each(image, write))).mean(0)

    def each(self, image: Tensor, write: Box) -> Iterator[Tensor]:
        """The same of each member."""
        read = self.reads(write)
        for member, method in zip(self.network.parts, self.methods, strict=True):
            inner = method.reads(write).inside(read)
            index: tuple[Any, ...] = (..., *inner.slices[3 - self.ndim :])
            yield member.calibrate(method(member.normalize(image[index]), write))


def parts(method: Method) -> tuple[Method, ...]:
    """The methods of an ensemble's members, or the one method of a single network."""
    return method.methods if isinstance(method, Members) else (method,)


def answers(method: Method, image: Tensor, write: Box) -> Iterator[Tensor]:
    """Log-odds (z, y, x) of a box as each network gives them, one after the other."""
    if isinstance(method, Members):
        yield from method.each(image, write)
    else:
        yield method(image, write)


def on_meta(method: Any, dtype: torch.dtype, wrap: Callable[[Any], Any]) -> Any:  # noqa: ANN401 (a frozen dataclass, whose type it keeps)
    """The same method with a network of tensors that have a shape but no voxels; what answers one tile is wrapped."""
    if isinstance(method, Members):
        return replace(method, methods=tuple(on_meta(part, dtype, wrap) for part in method.methods))
    network = copy.deepcopy(method.network).to(device="meta", dtype=dtype)
    network.forward = wrap(network.forward)
    method = replace(method, network=network)
    if isinstance(method, Blend):
        object.__setattr__(method, "answer", wrap(method.answer))
    return method
