r"""Padding: the constant margins and holes of aligned stacks and mosaics, which contain no tissue.

In each slice, padding is every region of one value (or of NaN), connected along y and x, that covers a run of the
slice's border at least as long as a `SHARE` of the slice's shorter side and `LEAST` pixels:

    0 0 0 0 0 0 0        o o o o o o o
    0 0 0 7 4 6 3        o o o . . . .
    0 0 2 5 0 1 8   ->   o o . . . . .      o is padding
    0 9 4 4 2 7 5        o . . . . . .

or, in slices of up to `BAND` pixels, a square of twice that side (and 64). Inside a frame of another value, the inner
edge of the frame serves as border. For a margin's value v and the tissue's median m, "one value" means within `ONE`
times abs(v - m), since lossy codecs add noise, and within `FRINGE` times that for up to `RING` pixels further, since
codecs, filters and interpolation blur edges. Saturated resin and stain are seldom constant over so many pixels.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes.base import Array, Bools, DerivedVolume, Volume
from mitoseg.volumes.normalize import sample_boxes, sample_greys

CHOICES = ("auto", "none")
# Length of the run of border pixels: a fraction of the slice's shorter side, and a minimum in pixels.
SHARE, LEAST = 1 / 16, 16
# Tolerances for padding and for its blurred edge, and the width of that edge in pixels; see above.
ONE, FRINGE, RING = 1 / 64, 1 / 4, 8
BAND = 2**24  # pixels of a slice processed at a time
REACH = 64  # distance from the tissue, in pixels, up to which padding is replaced by its reflection
_SLAB = 2**22  # voxels read at a time if slices are small
_STRIP = 256  # rows packed together
_KEPT = 2**28  # bytes of packed masks kept in memory
_LOCK = threading.RLock()  # for separate reader and writer threads; global because volumes are pickled
_Packed = tuple[bytes, ...]
_Read = Callable[[Box], Array]


class Padding(Volume):
    """The padding of a volume, detected on demand in whole slices and kept packed."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(replace(volume.info, dtype=np.dtype(np.bool_), metadata={}))
        self.volume = volume
        self._packed: dict[int, _Packed] = {}
        self._counts: dict[int, int] = {}
        self._bytes = 0

    @cached_property
    def _tissue(self) -> float:
        """The median grey value of small non-constant boxes spread over the volume; NaN if all are constant."""
        volume, sides = self.volume, (1, 32, 32)
        if volume.dtype.kind not in "iuf":
            return math.nan
        greys = [volume.read(box) for box in sample_boxes(volume, sides)]
        greys = [box_zyx.astype(np.float64) for box_zyx in greys if np.isfinite(box_zyx).all()]
        spread_n = np.array([np.subtract(*np.quantile(grey, (0.9, 0.1))) for grey in greys])
        kept = [grey.ravel() for grey, spread in zip(greys, spread_n, strict=True) if spread > spread_n.max() / 8]
        return float(np.median(np.concatenate(kept))) if kept else math.nan

    def find(self, box: Box) -> Bools | None:
        """The mask (z, y, x) of a box; None if it contains no padding."""
        box = self.check_box(box)
        with _LOCK:
            self._find_missing(box)
            if not any(self._counts[z] for z in range(box.start[0], box.stop[0])):
                return None
            packed = [self._packed[z] for z in range(box.start[0], box.stop[0])]
        (_, y0, x0), (_, y1, x1) = box.start, box.stop
        mask_zyx = np.zeros(box.shape, np.bool_)
        for mask_yx, strips in zip(mask_zyx, packed, strict=True):
            for first in range(y0 // _STRIP * _STRIP, y1, _STRIP) if strips else ():
                a, b = max(y0, first), min(y1, first + _STRIP)
                strip_yx = _unpack(strips[first // _STRIP], (min(_STRIP, self.shape[1] - first), self.shape[2]))
                mask_yx[a - y0 : b - y0] = strip_yx[a - first : b - first, x0:x1]
        return mask_zyx if mask_zyx.any() else None

    def _read(self, box: Box) -> Bools:
        mask_zyx = self.find(box)
        return np.zeros(box.shape, np.bool_) if mask_zyx is None else mask_zyx

    def part(self, box: Box) -> Padding:
        """See `Volume.part`; results for other slices are not included."""
        with _LOCK:
            part = copy(self)
            part._packed = {z: self._packed[z] for z in range(box.start[0], box.stop[0]) if z in self._packed}
            part._counts = {z: self._counts[z] for z in part._packed}
            part._bytes = sum(len(strip) for strips in part._packed.values() for strip in strips)
        return part

    def count(self, box: Box | None = None) -> int:
        """Number of padding voxels in a box or the whole volume."""
        box, found = self.check_box(box), 0
        for slab in slabs(box, self.depth):
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
    def depth(self) -> int:
        """Number of slices read together."""
        return max(1, _SLAB // max(1, self.shape[1] * self.shape[2]))

    def _find_missing(self, box: Box) -> None:
        """Detect padding in those slices of a box that have not been processed yet."""
        while self._bytes > _KEPT:
            self._bytes -= sum(map(len, self._packed.pop(next(iter(self._packed)))))
        _, Y, X = self.shape
        z, stop = box.start[0], box.stop[0]
        while z < stop:
            if z in self._packed:
                z += 1
                continue
            following = range(z, min(stop, z + self.depth))
            depth = next((n for n, k in enumerate(following) if k in self._packed), len(following))
            if Y * X > BAND:
                found = [_pack_bands(partial(self._read_part, z), (Y, X), self._tissue)]
            else:
                image_zyx = self.volume.read(Box((z, 0, 0), (z + depth, Y, X)))
                masks = [_find_in(image_yx, self._tissue) for image_yx in image_zyx]
                found = [(_pack_strips(mask_yx) if mask_yx.any() else (), int(mask_yx.sum())) for mask_yx in masks]
            for packed, count in found:
                self._packed[z], self._counts[z] = packed, count
                self._bytes += sum(map(len, packed))
                z += 1

    def _read_part(self, z: int, part: Box) -> Array:
        return np.asarray(self.volume.read(Box((z, *part.start), (z + 1, *part.stop)))[0])


def _pack_bands(read: _Read, shape: tuple[int, int], tissue: float) -> tuple[_Packed, int]:
    """The same for a slice of more than `BAND` pixels, band by band, repeated where padding reaches the next band."""
    Y, X = shape
    whole = Box((0, 0), shape)
    y_n, x_n, levels = _held_border(read, whole, tissue)
    if not len(y_n):
        return (), 0
    rows = max(1, BAND // (X * _STRIP)) * _STRIP
    bands = [Box((a, 0), (min(a + rows, Y), X)) for a in range(0, Y, rows)]
    found: dict[int, tuple[Array, Bools]] = {}
    masks: dict[int, bytes] = {}
    waiting = list(range(len(bands)))
    while waiting:
        i = waiting.pop(0)
        (a, _), (b, _) = bands[i].start, bands[i].stop
        image_yx, seeds_yx = read(bands[i]), np.zeros((b - a, X), np.bool_)
        inside_n = (y_n >= a) & (y_n < b)
        seeds_yx[y_n[inside_n] - a, x_n[inside_n]] = True
        for row, j in ((0, i - 1), (-1, i + 1)):
            if j in found:
                ends, known = found[j]
                for level in levels:
                    seeds_yx[row] |= known[-1 - row] & level.holds(image_yx[row]) & level.holds(ends[-1 - row])
        mask_yx = _grow(image_yx, seeds_yx, levels)
        before = found.get(i)
        found[i], masks[i] = (image_yx[[0, -1]], mask_yx[[0, -1]]), _pack(mask_yx)
        if before is None or not np.array_equal(before[1], found[i][1]):
            waiting += [j for j in (i - 1, i + 1) if j in found and j not in waiting]
    strips: list[bytes] = []
    count = 0
    for i, band in enumerate(bands):
        near = [j for j in (i - 1, i, i + 1) if 0 <= j < len(bands)]
        part = Box((max(0, band.start[0] - RING), 0), (min(bands[-1].stop[0], band.stop[0] + RING), X))
        mask_yx = np.zeros(part.shape, np.bool_)
        for j in near:
            common = part.clip(bands[j])
            mask_yx[common.inside(part).slices] = _unpack(masks[j], bands[j].shape)[common.inside(bands[j]).slices]
        mask_yx = _with_edge(read(part), mask_yx, levels)[band.inside(part).slices]
        strips += _pack_strips(mask_yx)
        count += int(np.count_nonzero(mask_yx))
    return tuple(strips), count


def _find_in(image_yx: Array, tissue: float) -> Bools:
    mask_yx, left, held = np.zeros(image_yx.shape, np.bool_), Box((0, 0), image_yx.shape), True
    seeds_yx, levels = _flat_squares(image_yx, tissue)
    while held:
        y_n, x_n, found = _held_border(lambda part: image_yx[part.slices], left, tissue)
        held = not mask_yx[y_n, x_n].all()
        seeds_yx[y_n, x_n] = True
        levels += found
        if seeds_yx.any():
            mask_yx |= _grow(image_yx, seeds_yx, levels)
        if not mask_yx.any() or mask_yx.all():
            break
        y, x = (np.flatnonzero(~mask_yx.all(axis=axis)) for axis in (1, 0))
        left = Box((int(y[0]), int(x[0])), (int(y[-1]) + 1, int(x[-1]) + 1))
    return _with_edge(image_yx, mask_yx, levels)


@dataclass(frozen=True)
class _Level:
    """A padding value, and that of the tissue."""

    value: float
    tissue: float

    def holds(self, image: Array, share: float = ONE) -> Bools:
        """Which pixels have this value, up to a fraction of its distance to the tissue; NaN equals NaN."""
        value = self.value
        room = 0.0 if math.isnan(self.tissue) or math.isinf(value) else share * abs(value - self.tissue)
        if math.isnan(value):
            return np.isnan(image)
        if image.dtype.kind == "b" or room == 0 or (image.dtype.kind != "f" and room < 1):
            return np.asarray(image == image.dtype.type(value))
        low, high = value - room, value + room
        if image.dtype.kind != "f":
            low, high = math.ceil(low), math.floor(high)
        return np.asarray((image >= low) & (image <= high))


def _held_border(
    read: _Read, part: Box, tissue: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[_Level]]:
    """Pixels in long runs of one value along the border of a part: their y, their x, and the values."""
    (y0, x0), (y1, x1) = part.start, part.stop
    top, bottom = (read(Box((y, x0), (y + 1, x1)))[0] for y in (y0, y1 - 1))
    left, right = (read(Box((y0, x), (y1, x + 1)))[:, 0] for x in (x0, x1 - 1))
    value_n = np.concatenate([top, right[1:], bottom[-2::-1], left[-2:0:-1]])
    y, x = np.arange(y0, y1), np.arange(x0, x1)
    y_n = np.concatenate([0 * x + y0, y[1:], 0 * x[1:] + y1 - 1, y[-2:0:-1]])
    x_n = np.concatenate([x, 0 * y[1:] + x1 - 1, x[-2::-1], 0 * y[-2:0:-1] + x0])
    grey_n = value_n.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        room_n = np.nan_to_num(ONE * np.abs(grey_n - tissue), nan=0.0, posinf=0.0)
        before_n = np.roll(grey_n, 1)
        same_n = (grey_n == before_n) | (np.abs(grey_n - before_n) <= room_n) | np.isnan(grey_n) & np.isnan(before_n)
    starts = np.flatnonzero(~same_n)
    starts = starts if len(starts) else np.zeros(1, np.int64)
    least, levels, held_n = max(LEAST, SHARE * min(part.shape)), [], np.zeros(len(grey_n), np.bool_)
    for start, length in zip(starts, np.diff(starts, append=starts[0] + len(grey_n)), strict=True):
        if length >= least:
            run_n = np.arange(start, start + length) % len(grey_n)
            level = _Level(float(np.sort(grey_n[run_n])[length // 2]), tissue)
            run_n = run_n[level.holds(value_n[run_n])]
            if len(run_n) >= least:
                held_n[run_n] = True
                levels.append(level)
    return y_n[held_n], x_n[held_n], list(dict.fromkeys(levels))


def _flat_squares(image_yx: Array, tissue: float) -> tuple[Bools, list[_Level]]:
    """Pixels of constant squares as large as a hole or larger, and their values."""
    seeds_yx, levels = np.zeros(image_yx.shape, np.bool_), []
    step = int(max(4 * LEAST, 2 * SHARE * min(image_yx.shape))) // 4  # see `LEAST`
    few_yx = image_yx[::step, ::step].astype(np.float64)
    if min(few_yx.shape) < 4:
        return seeds_yx, []
    with np.errstate(invalid="ignore"):  # squares are tested fully only if 4 x 4 samples agree
        windows = np.lib.stride_tricks.sliding_window_view(few_yx, (4, 4))
        low_yx, high_yx = windows.min(axis=(2, 3)), windows.max(axis=(2, 3))
        alike_yx = high_yx - low_yx <= 2 * ONE * np.nan_to_num(np.abs(low_yx - tissue))
        alike_yx |= np.isnan(windows).all(axis=(2, 3))
    for y, x in np.argwhere(alike_yx) * step:
        part = np.s_[y : y + 3 * step + 1, x : x + 3 * step + 1]
        if not seeds_yx[part].all():
            level = _Level(float(np.sort(image_yx[part], axis=None)[image_yx[part].size // 2]), tissue)
            if level.holds(image_yx[part]).all():
                seeds_yx[part] = True
                levels.append(level)
    return seeds_yx, list(dict.fromkeys(levels))


def _grow(image_yx: Array, seeds_yx: Bools, levels: Sequence[_Level]) -> Bools:
    """All pixels connected to a seed along y and x through pixels of its value."""
    mask_yx = np.zeros(image_yx.shape, np.bool_)
    for level in levels:
        same_yx = level.holds(image_yx)
        label_yx, count = ndimage.label(same_yx)
        kept = np.zeros(count + 1, np.bool_)
        kept[label_yx[seeds_yx & same_yx]] = True
        mask_yx |= kept[label_yx]
    return mask_yx


def _with_edge(image_yx: Array, mask_yx: Bools, levels: Sequence[_Level]) -> Bools:
    """Add the edge of padding blurred by a codec, a filter or interpolation."""
    for level in levels if mask_yx.any() else ():
        own_yx = mask_yx & level.holds(image_yx)
        near_yx = level.holds(image_yx, FRINGE)
        if not np.array_equal(own_yx, near_yx):
            mask_yx = mask_yx | ndimage.binary_dilation(own_yx, iterations=RING, mask=near_yx)
    return mask_yx


def _pack_strips(mask_yx: Bools) -> _Packed:
    return tuple(_pack(mask_yx[y : y + _STRIP]) for y in range(0, len(mask_yx), _STRIP))


def _pack(mask_yx: Bools) -> bytes:
    return zlib.compress(np.packbits(mask_yx, axis=1).tobytes(), 1) if mask_yx.any() else b""


def _unpack(packed: bytes, shape: tuple[int, ...]) -> Bools:
    if not packed:
        return np.zeros(shape, np.bool_)
    bits = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape[0], -1)
    return np.unpackbits(bits, axis=1, count=shape[1]).view(np.bool_)


class PaddedVolume(DerivedVolume):
    """A volume with known padding, which is read as the mirrored tissue beside it: o o a b c -> c b a b c.

    This is also what a network sees beyond the border of a volume. Each row is mirrored at the nearest tissue, up to
    `REACH` pixels away; the rest is mirrored along the columns, and beyond that is the mean of the tissue.
    """

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume)
        self.known = volume.padding = self.padding = Padding(volume)

    def scratch_bytes(self, box: Box) -> int:
        """Memory for a slice during detection, and for its components."""
        looked_at = min(BAND, self.shape[1] * self.shape[2]) * (8 + self.dtype.itemsize)
        return looked_at + box.size * self.dtype.itemsize + self.volume.scratch_bytes(box)

    def _read(self, box: Box) -> Array:
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
        """The mean grey value of the tissue, in the stored type."""
        self.volume.padding = self.known  # lost when another process reopens the file
        greys = sample_greys(self.volume)
        mean = float(greys.mean(dtype=np.float64)) if greys.size else 0.0
        return mean if self.dtype.kind == "f" else round(mean)


def _mirror(image_yx: Array, tissue_yx: Bools) -> Bools:
    """Mirror rows in place, up to `REACH` pixels from their tissue; return which pixels are filled now."""
    filled_yx, X = tissue_yx.copy(), image_yx.shape[1]
    x, nowhere = np.arange(X), X + REACH  # a row without tissue has none within reach
    for first in range(0, len(image_yx), _STRIP):
        strip = slice(first, first + _STRIP)
        image, tissue, filled = image_yx[strip], tissue_yx[strip], filled_yx[strip]
        if tissue.all() or not tissue.any():
            continue
        before = np.maximum.accumulate(np.where(tissue, x, -1 - REACH), axis=1)
        after = np.minimum.accumulate(np.where(tissue, x, nowhere)[:, ::-1], axis=1)[:, ::-1]
        edge = np.where(x - before <= after - x, before, after)
        y_n, x_n = np.nonzero(~tissue & (np.abs(x - edge) <= REACH))
        edge_n = edge[y_n, x_n]
        mirrored_n = 2 * edge_n - x_n
        inside_n = (mirrored_n >= 0) & (mirrored_n < X)
        mirrored_n = np.where(inside_n & tissue[y_n, np.where(inside_n, mirrored_n, 0)], mirrored_n, edge_n)
        image[y_n, x_n] = image[y_n, mirrored_n]
        filled[y_n, x_n] = True
    return filled_yx


class BlankedVolume(DerivedVolume):
    """A result or labels with a constant value where the image is padding."""

    def __init__(self, volume: Volume, padding: Padding, value: int = 0) -> None:
        super().__init__(volume)
        self.padding, self._value = padding, value

    def part(self, box: Box) -> Volume:
        """See `Volume.part`."""
        assert isinstance(self.padding, Padding)
        return BlankedVolume(self.volume.part(box), self.padding.part(box), self._value)

    def _read(self, box: Box) -> Array:
        assert self.padding is not None
        found_zyx, padding_zyx = self.volume.read(box), self.padding.find(box)
        if padding_zyx is None:
            return found_zyx
        return np.where(padding_zyx, found_zyx.dtype.type(self._value), found_zyx)


def with_padding(volume: Volume, choice: object) -> Volume:
    """An image with its padding detected, or unchanged, depending on the choice, one of `CHOICES`."""
    if choice not in CHOICES:
        raise UserError("no such way to treat padding", choice, f"choose one of {', '.join(CHOICES)}")
    return PaddedVolume(volume) if choice == "auto" else volume


def has_tissue(image: Volume) -> bool:
    """Whether an image, possibly resampled, has any tissue; reads up to the first slices that have some."""
    known: object = image.padding
    while known is not None and not isinstance(known, Padding):
        known = getattr(known, "volume", None)
    if known is None:
        return True
    if any(known.count(slab) < slab.size for slab in slabs(known.box, known.depth)):
        return True
    first = known.volume.read(Box((0, 0, 0), (1, 1, 1)))
    if np.isnan(first).any():
        raise UserError("the image contains only NaN", image.path, "check that it is the right file")
    return False


def as_stored(image: Volume) -> Volume:
    """An image with its margins as stored in the file, for display."""
    return image.volume if isinstance(image, PaddedVolume) else image


def blanked(result: Volume, padding: object, value: int = 0) -> Volume:
    """A result or labels with a constant value in the image's padding, if that is known."""
    return BlankedVolume(result, padding, value) if isinstance(padding, Padding) else result
