r"""Padding: margins of one value, which aligned stacks have and which hold no tissue.

A section that was shifted, turned or sheared into its place leaves margins of one value, a missing one is one value
altogether. In each slice, padding is every region of exactly one value (or of NaN), connected along y and x, of which
a stretch of the slice's border consists that is a `SHARE` of the slice's shorter side or more, and `LEAST` pixels:

    0 0 0 0 0 0 0        o o o o o o o
    0 0 0 7 4 6 3        o o o . . . .
    0 0 2 5 0 1 8   ->   o o . . . . .      o is padding
    0 9 4 4 2 7 5        o . . . . . .

Resin and stains that saturate are seldom of one value over so many pixels of the border. A margin that was stored with
a lossy codec is of one value but for the blocks that tissue reaches into (8 pixels of JPEG): these count as tissue.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes.base import Array, Volume
from mitoseg.volumes.normalize import sample_greys

CHOICES = ("auto", "none")
SHARE, LEAST = 1 / 16, 16
"""Pixels of the border that padding fills in a row: a share of the slice's shorter side, and at least so many."""
BAND = 2**24
"""Voxels of a slice that are looked at together."""
REACH = 64
"""Pixels from the tissue up to which padding is seen as its mirror image."""
_SLAB = 2**22  # voxels that are read together where slices are small
_STRIP = 256  # rows that are packed together
_KEPT = 2**28  # bytes of packed masks that are kept
_LOCK = threading.RLock()  # reading and writing are threads of their own; here and not in a volume, which is pickled

Mask = npt.NDArray[np.bool_]
_Read = Callable[[Box], Array]


class Padding(Volume):
    """Where a volume is padding, as a mask, found slice by slice when it is asked for, and kept packed.

    What a voxel is depends on its whole slice and not on the box that is read.
    """

    def __init__(self, volume: Volume) -> None:
        super().__init__(replace(volume.info, dtype=np.dtype(np.bool_), metadata={}))
        self.volume = volume
        self._packed: dict[int, tuple[bytes, ...]] = {}
        self._counts: dict[int, int] = {}
        self._bytes = 0

    def find(self, box: Box) -> Mask | None:
        """The mask (z, y, x) of a box; None where it holds no padding.

        Raises:
            UserError: The file is damaged.
        """
        box = self.check_box(box)
        with _LOCK:
            self._look_at(box)
            if not any(self._counts[z] for z in range(box.start[0], box.stop[0])):
                return None
            packed = [self._packed[z] for z in range(box.start[0], box.stop[0])]
        (_, y0, x0), (_, y1, x1) = box.start, box.stop
        mask_zyx = np.zeros(box.shape, np.bool_)
        for mask_yx, strips in zip(mask_zyx, packed, strict=True):
            for i in range(y0 // _STRIP, -(-y1 // _STRIP)) if strips else ():
                a, b = max(y0, i * _STRIP), min(y1, (i + 1) * _STRIP)
                rows = min(_STRIP, self.shape[1] - i * _STRIP)
                mask_yx[a - y0 : b - y0] = self._unpack(strips[i], rows)[a - i * _STRIP : b - i * _STRIP, x0:x1]
        return mask_zyx if mask_zyx.any() else None

    def read(self, box: Box | None = None) -> Mask:
        """Read one box; see `Volume.read`."""
        box = self.check_box(box)
        mask_zyx = self.find(box)
        return np.zeros(box.shape, np.bool_) if mask_zyx is None else mask_zyx

    def part(self, box: Box) -> Padding:
        """See `Volume.part`: what is known of other slices stays here."""
        with _LOCK:
            part = copy(self)
            part._packed = {z: self._packed[z] for z in range(box.start[0], box.stop[0]) if z in self._packed}
            part._counts = {z: self._counts[z] for z in part._packed}
            part._bytes = sum(len(strip) for strips in part._packed.values() for strip in strips)
        return part

    def count(self, box: Box | None = None) -> int:
        """Voxels of padding in a box, or in the whole volume."""
        box, found = self.check_box(box), 0
        for slab in slabs(box, self._depth):
            z_n = range(slab.start[0], slab.stop[0])
            if slab.shape[1:] != self.shape[1:]:
                mask_zyx = self.find(slab)
                found += 0 if mask_zyx is None else int(np.count_nonzero(mask_zyx))
                continue
            if any(z not in self._counts for z in z_n):
                self.find(slab)
            found += sum(self._counts[z] for z in z_n)
        return found

    @property
    def _depth(self) -> int:
        """Slices that are read together."""
        return max(1, _SLAB // max(1, self.shape[1] * self.shape[2]))

    def _look_at(self, box: Box) -> None:
        """Find the padding of the slices of a box that are not known."""
        while self._bytes > _KEPT:
            self._bytes -= sum(map(len, self._packed.pop(next(iter(self._packed)))))
        _, Y, X = self.shape
        z, stop = box.start[0], box.stop[0]
        while z < stop:
            if z in self._packed:
                z += 1
                continue
            following = range(z, min(stop, z + self._depth))
            depth = next((n for n, k in enumerate(following) if k in self._packed), len(following))
            if Y * X > BAND:
                slices: list[_Read] = [partial(self._read_part, z)]
            else:
                slices = [
                    partial(_part_of, image_yx) for image_yx in self.volume.read(Box((z, 0, 0), (z + depth, Y, X)))
                ]
            for read in slices:
                self._packed[z], self._counts[z] = pack_padding(read, (Y, X))
                self._bytes += sum(map(len, self._packed[z]))
                z += 1

    def _read_part(self, z: int, part: Box) -> Array:
        """A part (y, x) of a slice."""
        image_yx: Array = self.volume.read(Box((z, *part.start), (z + 1, *part.stop)))[0]
        return image_yx

    def _unpack(self, strip: bytes, rows: int) -> Mask:
        """A strip of rows as it was packed."""
        if not strip:
            return np.zeros((rows, self.shape[2]), np.bool_)
        bits = np.frombuffer(zlib.decompress(strip), np.uint8).reshape(rows, -1)
        mask_yx: Mask = np.unpackbits(bits, axis=1, count=self.shape[2]).view(np.bool_)
        return mask_yx


def _part_of(image_yx: Array, part: Box) -> Array:
    return image_yx[part.slices]


def pack_padding(read: _Read, shape: tuple[int, int]) -> tuple[tuple[bytes, ...], int]:
    """The padding of one slice, packed strip by strip, and how many pixels it has; no strips where there is none.

    A slice is looked at in bands of rows, again and again where padding reaches from one into the next.

    Args:
        read: Reads a part (y, x) of the slice.
        shape: Of the slice (y, x).
    """
    Y, X = shape
    y_n, x_n, held_n = _held_border(read, shape)
    if not held_n.any():
        return (), 0
    rows = max(1, BAND // (X * _STRIP)) * _STRIP
    bands = [Box((a, 0), (min(a + rows, Y), X)) for a in range(0, Y, rows)]
    found: dict[int, tuple[Array, Mask, list[bytes], int]] = {}
    waiting = list(range(len(bands)))
    while waiting:
        i = waiting.pop(0)
        (a, _), (b, _) = bands[i].start, bands[i].stop
        image_yx, seeds_yx = read(bands[i]), np.zeros((b - a, X), np.bool_)
        inside_n = held_n & (y_n >= a) & (y_n < b)
        seeds_yx[y_n[inside_n] - a, x_n[inside_n]] = True
        for row, j in ((0, i - 1), (-1, i + 1)):
            if j in found:
                ends, known = found[j][:2]
                seeds_yx[row] |= known[-1 - row] & _equal(image_yx[row], ends[-1 - row])
        mask_yx = _grow(image_yx, seeds_yx)
        packed = [_pack(mask_yx[y : y + _STRIP]) for y in range(0, b - a, _STRIP)]
        before = found.get(i)
        found[i] = image_yx[[0, -1]], mask_yx[[0, -1]], packed, int(np.count_nonzero(mask_yx))
        if before is None or not np.array_equal(before[1], found[i][1]):
            waiting += [j for j in (i - 1, i + 1) if j in found and j not in waiting]
    return tuple(strip for i in range(len(bands)) for strip in found[i][2]), sum(one[3] for one in found.values())


def _held_border(read: _Read, shape: tuple[int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Mask]:
    """Pixels along the border, once around: their y, their x, and whether they are part of a long run of one value."""
    Y, X = shape
    top, bottom = (read(Box((y, 0), (y + 1, X)))[0] for y in (0, Y - 1))
    left, right = (read(Box((0, x), (Y, x + 1)))[:, 0] for x in (0, X - 1))
    value_n = np.concatenate([top, right[1:], bottom[-2::-1], left[-2:0:-1]])
    y, x = np.arange(Y), np.arange(X)
    y_n = np.concatenate([0 * x, y[1:], 0 * x[1:] + Y - 1, y[-2:0:-1]])
    x_n = np.concatenate([x, 0 * y[1:] + X - 1, x[-2::-1], 0 * y[-2:0:-1]])
    starts = np.flatnonzero(~_equal(value_n, np.roll(value_n, 1)))
    if not len(starts):
        return y_n, x_n, np.ones(len(value_n), np.bool_)
    lengths = np.diff(starts, append=starts[0] + len(value_n))
    held_n = np.repeat(lengths >= max(LEAST, SHARE * min(shape)), lengths)
    return y_n, x_n, np.roll(held_n, starts[0])


def _grow(image_yx: Array, seeds_yx: Mask) -> Mask:
    """All pixels that are connected to a seed along y and x by pixels of its value."""
    mask_yx = np.zeros(image_yx.shape, np.bool_)
    for value in np.unique(image_yx[seeds_yx]):
        same_yx = _equal(image_yx, value)
        label_yx, count = ndimage.label(same_yx)
        kept = np.zeros(count + 1, np.bool_)
        kept[label_yx[seeds_yx & same_yx]] = True
        mask_yx |= kept[label_yx]
    return mask_yx


def _equal(values: Array, others: Array) -> Mask:
    """Which are equal; NaN is equal to NaN."""
    equal: Mask = values == others
    return equal | ((values != values) & (others != others)) if values.dtype.kind == "f" else equal


def _pack(mask_yx: Mask) -> bytes:
    return zlib.compress(np.packbits(mask_yx, axis=1).tobytes(), 1) if mask_yx.any() else b""


class PaddedVolume(Volume):
    """A volume that knows its padding, and reads there as the tissue beside it, mirrored.

    That is what a network sees beyond the border of a volume, too. Each row is mirrored at the nearest tissue, up to
    `REACH` pixels away; what is left is mirrored along the columns, and beyond that is the mean of the tissue:

        o o o a b c d   ->   d c b a b c d

    Args:
        volume: What is read.
    """

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume.info)
        self.volume = volume
        self.known = volume.padding = self.padding = Padding(volume)

    def state(self) -> str:
        """See `Volume.state`."""
        return self.volume.state()

    def find_gaps(self) -> UserError | None:
        """See `Volume.find_gaps`."""
        return self.volume.find_gaps()

    def scratch_bytes(self, box: Box) -> int:
        """A slice that is looked at, and its labels; see `Volume.scratch_bytes`."""
        looked_at = min(BAND, self.shape[1] * self.shape[2]) * (6 + self.dtype.itemsize)
        return looked_at + box.size * self.dtype.itemsize + self.volume.scratch_bytes(box)

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        box = self.check_box(box)
        if self.known.find(box) is None:
            return self.volume.read(box)
        seen = box.grow((0, 2 * REACH, 2 * REACH)).clip(self.box)
        image_zyx, padding_zyx = self.volume.read(seen).copy(), self.known.read(seen)
        for image_yx, padding_yx in zip(image_zyx, padding_zyx, strict=True):
            if padding_yx.any():
                tissue_yx = _mirror(image_yx, ~padding_yx)
                tissue_yx = _mirror(image_yx.T, tissue_yx.T).T
                image_yx[~tissue_yx] = self._mean
        return image_zyx[box.inside(seen).slices]

    @cached_property
    def _mean(self) -> float:
        """The mean grey value of the tissue, as it is stored."""
        self.volume.padding = self.known  # a file that was opened again by another process has lost it
        greys = sample_greys(self.volume)
        mean = float(greys.mean(dtype=np.float64)) if greys.size else 0.0
        return mean if self.dtype.kind == "f" else round(mean)


def _mirror(image_yx: Array, tissue_yx: Mask) -> Mask:
    """Fill in rows, in place, up to `REACH` pixels from their tissue; where there is tissue now."""
    strips = [slice(y, y + _STRIP) for y in range(0, len(image_yx), _STRIP)]
    return np.concatenate([_mirror_strip(image_yx[strip], tissue_yx[strip]) for strip in strips])


def _mirror_strip(image_yx: Array, tissue_yx: Mask) -> Mask:
    """The same of some rows."""
    if tissue_yx.all() or not tissue_yx.any():
        return tissue_yx
    X = image_yx.shape[1]
    x, nowhere = np.arange(X), X + REACH  # a row without tissue has none within reach
    before = np.maximum.accumulate(np.where(tissue_yx, x, -1 - REACH), axis=1)
    after = np.minimum.accumulate(np.where(tissue_yx, x, nowhere)[:, ::-1], axis=1)[:, ::-1]
    edge = np.where(x - before <= after - x, before, after)
    y_n, x_n = np.nonzero(~tissue_yx & (np.abs(x - edge) <= REACH))
    edge_n = edge[y_n, x_n]
    mirrored_n = 2 * edge_n - x_n
    inside_n = (mirrored_n >= 0) & (mirrored_n < X)
    mirrored_n = np.where(inside_n & tissue_yx[y_n, np.where(inside_n, mirrored_n, 0)], mirrored_n, edge_n)
    image_yx[y_n, x_n] = image_yx[y_n, mirrored_n]
    filled_yx = tissue_yx.copy()
    filled_yx[y_n, x_n] = True
    return filled_yx


class BlankedVolume(Volume):
    """A result, or labels, of one value where the image is padding.

    Args:
        volume: What is read.
        padding: On the same grid.
        value: What is read there.
    """

    def __init__(self, volume: Volume, padding: Padding, value: int = 0) -> None:
        super().__init__(volume.info)
        self.volume, self.padding, self._value = volume, padding, value

    def find_gaps(self) -> UserError | None:
        """See `Volume.find_gaps`."""
        return self.volume.find_gaps()

    def scratch_bytes(self, box: Box) -> int:
        """See `Volume.scratch_bytes`."""
        return self.volume.scratch_bytes(box)

    def part(self, box: Box) -> Volume:
        """See `Volume.part`."""
        assert isinstance(self.padding, Padding)
        return BlankedVolume(self.volume.part(box), self.padding.part(box), self._value)

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        assert self.padding is not None
        box = self.check_box(box)
        found_zyx, padding_zyx = self.volume.read(box), self.padding.find(box)
        return (
            found_zyx if padding_zyx is None else np.where(padding_zyx, found_zyx.dtype.type(self._value), found_zyx)
        )


def with_padding(volume: Volume, choice: object) -> Volume:
    """An image with its padding known, or as it is.

    Args:
        volume: Grey values.
        choice: One of `CHOICES`.

    Raises:
        UserError: It is none of them.
    """
    if choice not in CHOICES:
        raise UserError("no such way to treat padding", choice, f"choose one of {', '.join(CHOICES)}")
    return PaddedVolume(volume) if choice == "auto" else volume


def as_stored(image: Volume) -> Volume:
    """An image with its margins as they are in the file, to be looked at."""
    return image.volume if isinstance(image, PaddedVolume) else image


def blanked(result: Volume, padding: object, value: int = 0) -> Volume:
    """A result, or labels, of one value in the padding of the image, where that is known."""
    return BlankedVolume(result, padding, value) if isinstance(padding, Padding) else result
