r"""Boxes in voxels, slabs, tiles, and the one convention that ties a window to the pixel it answers.

A network with a window of ``w`` pixels says something about one pixel ``p``: the one at index ``w // 2`` of the
window (16 of 32, 33 of 67). The ``center`` label rule, training and every way of predicting use this convention.

    window of 32:   p-16 ............ p ............ p+15
                     |<---- 16 ---->|<---- 15 ---->|

A box is half-open, like a Python slice; axes are z, y, x unless said otherwise.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError


def anchor(window: int) -> int:
    """Index inside a window of the pixel that the window answers."""
    return window // 2


def reflect(index: npt.NDArray[np.integer], size: int) -> npt.NDArray[np.integer]:
    """Fold indices that leave an axis back into it, like ``numpy.pad`` in mode "reflect", as often as it takes.

    >>> reflect(np.arange(-3, 6), 3).tolist()
    [1, 2, 1, 0, 1, 2, 1, 0, 1]
    """
    period = max(2 * (size - 1), 1)
    folded: npt.NDArray[np.integer] = (size - 1) - np.abs((size - 1) - index % period)
    return folded


@dataclass(frozen=True)
class Box:
    """A half-open box of voxels, ``start <= index < stop`` on each axis."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop) or any(b < a for a, b in zip(self.start, self.stop, strict=False)):
            raise UserError("not a box", (self.start, self.stop), "each stop must be at or after its start")

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Box:
        """The box from the origin that covers an array of this shape."""
        return cls((0,) * len(shape), tuple(int(n) for n in shape))

    @classmethod
    def parse(cls, text: object, shape: Sequence[int]) -> Box:
        """Read ``[0:82,64:768,0:1024]`` against the shape of a volume; an empty bound means its end.

        What Hydra makes of a bracketed list, a sequence of ``"a:b"``, is read too.

        >>> Box.parse("[0:82,64:,:1024]", (82, 768, 1024)).start
        (0, 64, 0)
        """
        example = "[" + ",".join(f"0:{n}" for n in shape) + "]"
        remedy = f"write start:stop for each axis, inside the volume's {example}"
        words = [text] if isinstance(text, str) or not isinstance(text, Iterable) else [str(part) for part in text]
        parts = re.sub(r"[\[\]\s'\"]", "", ",".join(map(str, words))).split(",")
        matches = [re.fullmatch(r"(\d*):(\d*)", part) for part in parts]
        if len(parts) != len(shape) or not all(matches):
            raise UserError("cannot read the box", text, remedy)
        start = tuple(int(m[1] or 0) for m in matches if m)
        stop = tuple(int(m[2] or n) for m, n in zip(matches, shape, strict=True) if m)
        if any(not 0 <= a < b <= n for a, b, n in zip(start, stop, shape, strict=True)):
            raise UserError("the box is empty or leaves the volume", text, remedy)
        return cls(start, stop)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index: ``array[box.slices]``."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def shift(self, offset: Sequence[int]) -> Box:
        """The box moved by ``offset`` voxels."""
        return Box(
            tuple(a + o for a, o in zip(self.start, offset, strict=True)),
            tuple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def grow(self, margin: int | Sequence[int]) -> Box:
        """The box with ``margin`` voxels more on both sides of each axis (it may leave the volume)."""
        m = [margin] * len(self.start) if isinstance(margin, int) else list(margin)
        return Box(
            tuple(a - g for a, g in zip(self.start, m, strict=True)),
            tuple(b + g for b, g in zip(self.stop, m, strict=True)),
        )

    def clip(self, other: Box) -> Box:
        """The part inside ``other``; empty (zero size) where they do not meet."""
        start = tuple(max(a, c) for a, c in zip(self.start, other.start, strict=True))
        stop = tuple(max(s, min(b, d)) for s, b, d in zip(start, self.stop, other.stop, strict=True))
        return Box(start, stop)

    def inside(self, other: Box) -> Box:
        """This box in the coordinates of ``other``'s own array (its start becomes the origin)."""
        return self.shift([-a for a in other.start])

    def __str__(self) -> str:
        return "[" + ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + "]"


def slabs(box: Box, depth: int) -> Iterator[Box]:
    """Cut a box along z into runs of at most ``depth`` slices, in order.

    >>> [str(s) for s in slabs(Box((0, 0), (5, 9)), 2)]
    ['[0:2,0:9]', '[2:4,0:9]', '[4:5,0:9]']
    """
    for z in range(box.start[0], box.stop[0], depth):
        yield Box((z, *box.start[1:]), (min(z + depth, box.stop[0]), *box.stop[1:]))


def tiles(box: Box, shape: Sequence[int]) -> Iterator[Box]:
    """Cut a box into a regular grid of tiles from its start, the last along an axis cut at the box's end.

    >>> [str(t) for t in tiles(Box((0, 0), (3, 5)), (2, 4))]
    ['[0:2,0:4]', '[0:2,4:5]', '[2:3,0:4]', '[2:3,4:5]']
    """
    return meeting(box, shape, box)


def meeting(box: Box, shape: Sequence[int], part: Box) -> Iterator[Box]:
    """Those of `tiles` that have a voxel in common with a part of the box.

    >>> [str(t) for t in meeting(Box((0, 0), (9, 9)), (2, 4), Box((3, 4), (5, 5)))]
    ['[2:4,4:8]', '[4:6,4:8]']
    """
    if not part.size:
        return
    grid = zip(box.start, part.start, part.stop, shape, strict=True)
    axes = [range(a + (b - a) // n * n, c, n) for a, b, c, n in grid]
    for start in itertools.product(*axes):
        yield Box(start, tuple(a + n for a, n in zip(start, shape, strict=True))).clip(box)
