"""Grey values: normalisation by training statistics, channels made of slices, histogram matching."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes.base import Array, DerivedVolume, Volume, thin_slabs

log = logging.getLogger(__name__)
HOT = 10.0  # voxels more standard deviations than this from the mean are hot or dead pixels, and clipped for networks
CHANNEL_OFFSETS: dict[str, tuple[int, ...]] = {
    "adjacent": (-1, 0, 1),
    "adjacent5": (-2, -1, 0, 1, 2),
    "every_second9": (-8, -6, -4, -2, 0, 2, 4, 6, 8),
    "repeat": (0, 0, 0),
    "single": (0,),
}
"""Offsets of the channels' slices from the current slice, by name."""
COUNT = 257  # number of quantiles stored, from the smallest grey value to the largest
_SLICES, _STEP = 64, 4  # slices sampled in each volume, and the step in y and x
FAR_GREYS = 0.35  # distance from which grey values count as different from those of training
_PLACES, _SIDE, _DEPTH = 4, 96, 2  # number of sampled boxes along each axis, their side in y and x, and in z
_CHECK_FILE = "check that it is the right file"


@dataclass(frozen=True)
class Normalization:
    """The grey values' mean and standard deviation: ``(image - mean) / std``, from -``limit`` to ``limit``."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise UserError("not a normalisation", (self.mean, self.std), "give a finite mean and a std above zero")

    @property
    def limit(self) -> float:
        """`HOT`, or infinity if mean 0 and std 1 leave normalisation to the network."""
        return math.inf if (self.mean, self.std) == (0, 1) else HOT

    def apply(self, image: Array) -> npt.NDArray[np.float32]:
        """Normalise an image of any shape and real dtype; returns float32."""
        if not np.can_cast(image.dtype, np.float32):  # keep the precision of float64 and long integers
            precise = (image.astype(np.float64) - self.mean) / self.std
            return np.clip(precise, -self.limit, self.limit).astype(np.float32)
        result = image.astype(np.float32)
        result -= np.float32(self.mean)
        result /= np.float32(self.std)
        return np.clip(result, -self.limit, self.limit, out=result)


def check_image_values(image: Array, path: str, *, start: tuple[int, ...] | None = None) -> None:
    """Refuse grey values unusable for a network, in a part of an image whose first voxel is ``start`` (z, y, x)."""
    if image.dtype.kind not in "buif":
        what = f"the image's voxels are {image.dtype}, not real numbers"
        raise UserError(what, path, "convert it to real grey values")
    with np.errstate(over="ignore"):
        seen = image.astype(np.float32) if image.dtype == np.float64 else image
    if image.dtype.kind == "f" and not (finite := np.isfinite(seen)).all():
        kind = "NaN" if np.isnan(image).any() else "values that are infinite as float32"
        where = ""
        if start is not None:
            first = tuple(int(n + a) for n, a in zip(np.argwhere(~finite)[0], start, strict=True))
            where = f" at (z, y, x) = {first}"
        raise UserError(f"the image holds {kind}{where}", path, "replace them, for example by the mean grey value")


def read_tissue(volume: Volume, box: Box) -> Array:
    """The grey values of a box outside padding: (z, y, x) if there is none, else the remaining ones as (1, 1, n)."""
    image_zyx = volume.read(box)
    padding_zyx = None if volume.padding is None else volume.padding.find(box)
    if padding_zyx is not None:
        image_zyx = np.where(padding_zyx, image_zyx.dtype.type(0), image_zyx)
    check_image_values(image_zyx, volume.path, start=box.start)
    return image_zyx if padding_zyx is None else image_zyx[~padding_zyx][None, None]


def measure_normalization(parts: Iterable[tuple[Volume, Box]]) -> Normalization:
    """Mean and standard deviation of the voxels in some boxes, without padding, read slab by slab.

    Slabs are merged by the pairwise update of Chan, Golub and LeVeque (1983). Voxels beyond `HOT` standard deviations
    from the mean are hot pixels; if there are any, the rest is measured again without them.
    """
    parts, limits = list(parts), (-math.inf, math.inf)
    n, mean, squares, low, high = _merged_moments(parts, limits)
    path = parts[-1][0].path if parts else None
    if n == 0 and any(box.size for _, box in parts):
        raise UserError("the image is constant in every slice: it is all padding", path, _CHECK_FILE)
    if n == 0:
        raise UserError("there are no voxels to normalise by", path, "give a box that is not empty")
    if low == high:
        raise UserError(f"the image is constant, every voxel is {low:g}", path, _CHECK_FILE)
    voxels = n
    while True:
        reach = HOT * math.sqrt(squares / n)
        limits = (mean - reach, mean + reach)
        if limits[0] <= low and high <= limits[1]:
            break
        cooler = _merged_moments(parts, limits)
        if cooler[3] == cooler[4] or cooler[0] == n or voxels - cooler[0] > voxels / 1000:
            break
        n, mean, squares, low, high = cooler
    if n < voxels:
        what = "%s: %d hot or dead pixels, beyond %g standard deviations from the mean, are left out of normalisation"
        log.info(what, path, voxels - n, HOT)
    return Normalization(mean, math.sqrt(squares / n))


def _merged_moments(
    parts: Sequence[tuple[Volume, Box]], limits: tuple[float, float]
) -> tuple[int, float, float, float, float]:
    """Count, mean, sum of squared deviations, minimum and maximum of the voxels within limits, without padding."""
    n, mean, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for volume, box in parts:
        for slab in thin_slabs(box):
            image_zyx = read_tissue(volume, slab)
            if math.isfinite(limits[0]):
                image_zyx = image_zyx[(image_zyx >= limits[0]) & (image_zyx <= limits[1])][None, None]
            if not image_zyx.size:
                continue
            m, s = _moments(image_zyx)
            low, high = min(low, float(image_zyx.min())), max(high, float(image_zyx.max()))
            total = n + image_zyx.size
            squares += s + (m - mean) ** 2 * n * image_zyx.size / total
            mean += (m - mean) * image_zyx.size / total
            n = total
    return n, mean, squares, low, high


def _moments(image_zyx: Array) -> tuple[float, float]:
    """Mean and sum of squared deviations, exact for 8 and 16 bit integers."""
    if image_zyx.dtype in (np.uint8, np.uint16):
        counts = np.zeros(np.iinfo(image_zyx.dtype).max + 1, np.int64)
        for image_yx in image_zyx:  # the working set of one slice stays in the CPU cache
            counts += np.bincount(image_yx.ravel(), minlength=counts.size)
        values = np.arange(counts.size, dtype=float)
        mean = float(counts @ values) / image_zyx.size
        return mean, float(counts @ (values - mean) ** 2)
    mean = float(image_zyx.mean(dtype=np.float64))
    deviations = image_zyx.astype(np.float64).ravel() - mean
    return mean, float(deviations @ deviations)


def channel_slices(z: int, depth: int, channels: str) -> list[int]:
    """The slices that form the channels of slice ``z``; a missing neighbour is replaced by the slice itself.

    >>> channel_slices(0, 5, "adjacent"), channel_slices(2, 5, "adjacent")
    ([0, 0, 1], [1, 2, 3])
    """
    if channels not in CHANNEL_OFFSETS:
        raise UserError("no such channels", channels, f"choose one of {', '.join(CHANNEL_OFFSETS)}")
    neighbours = [z + offset for offset in CHANNEL_OFFSETS[channels]]
    return [n if 0 <= n < depth else z for n in neighbours]


def read_channels(volume: Volume, z: int, channels: str, box_yx: Box | None = None) -> Array:
    """Read the channels (a key of `CHANNEL_OFFSETS`) of slice ``z`` or a part of it as ``image_cyx``."""
    numbers = channel_slices(z, volume.shape[0], channels)
    box_yx = Box.of_shape(volume.shape[1:]) if box_yx is None else box_yx
    first, last = min(numbers), max(numbers)
    image_zyx = volume.read(Box((first, *box_yx.start), (last + 1, *box_yx.stop)))
    return image_zyx[[n - first for n in numbers]]


def grey_quantiles(parts: Iterable[tuple[Volume, Box]]) -> npt.NDArray[np.float64]:
    """`COUNT` evenly spaced quantiles of the grey values in some boxes, from a sample of slices, without padding."""
    found: list[Array] = []
    for volume, box in parts:
        step = max(1, box.shape[0] // _SLICES)
        for slab in list(slabs(box, 1))[::step]:
            image_zyx = volume.read(slab)[:, ::_STEP, ::_STEP]
            padding_zyx = None if volume.padding is None else volume.padding.find(slab)
            found.append(image_zyx.ravel() if padding_zyx is None else image_zyx[~padding_zyx[:, ::_STEP, ::_STEP]])
            check_image_values(found[-1], volume.path)
    if not sum(map(len, found)):
        what = "there are no voxels to match grey values by"
        raise UserError(what, None, "give a box that is not empty or all padding")
    return np.asarray(np.quantile(np.concatenate(found).astype(np.float64), np.linspace(0, 1, COUNT)))


class MatchedVolume(DerivedVolume):
    """A float32 volume whose histogram is matched to the quantiles of another volume, see `grey_quantiles`."""

    def __init__(self, volume: Volume, quantiles: Sequence[float]) -> None:
        super().__init__(volume, dtype=np.dtype(np.float32))
        own = grey_quantiles([(volume, volume.box)])
        if own[0] == own[-1]:
            raise UserError(f"the image is constant, every voxel is {own[0]:g}", volume.path, "check the file")
        wanted = np.interp(np.linspace(0, 1, COUNT), np.linspace(0, 1, len(quantiles)), quantiles)
        self._own, first = np.unique(own, return_index=True)
        last = COUNT - 1 - np.unique(own[::-1], return_index=True)[1]
        self._wanted = (wanted[first] + wanted[last]) / 2  # a value that spans several quantiles gets their middle

    def scratch_bytes(self, box: Box) -> int:
        """Memory for what is read, and for its values as float64."""
        each = self.volume.dtype.itemsize + (0 if self.volume.dtype in (np.uint8, np.uint16) else 8)
        return box.size * each + self.volume.scratch_bytes(box)

    def _read(self, box: Box) -> Array:
        grey_zyx = self.volume.read(box)
        if grey_zyx.dtype in (np.uint8, np.uint16):
            values = np.arange(np.iinfo(grey_zyx.dtype).max + 1)
            return np.interp(values, self._own, self._wanted).astype(np.float32)[grey_zyx]
        return np.interp(grey_zyx, self._own, self._wanted).astype(np.float32)


def sample_greys(volume: Volume) -> Array:
    """Grey values of small boxes spread evenly over a volume, without padding and constant boxes."""
    found = [read_tissue(volume, box) for box in sample_boxes(volume, (_DEPTH, _SIDE, _SIDE))]
    found = [image_zyx.ravel() for image_zyx in found if image_zyx.size and image_zyx.min() < image_zyx.max()]
    return np.concatenate(found) if found else np.empty(0, volume.dtype)


def sample_boxes(volume: Volume, sides: tuple[int, int, int]) -> Iterator[Box]:
    """Boxes of the given size (z, y, x), each in the middle of one of equal parts of the volume."""
    axes = [
        sorted({max(0, min(n - side, int((i + 0.5) * n / _PLACES) - side // 2)) for i in range(_PLACES)})
        for n, side in zip(volume.shape, sides, strict=True)
    ]
    for start in itertools.product(*axes):
        yield Box(start, tuple(a + side for a, side in zip(start, sides, strict=True))).clip(volume.box)


def grey_distance(greys: Array, quantiles: Sequence[float]) -> float:
    """Wasserstein-1 distance of grey values from evenly spaced quantiles of training, in its standard deviations.

    Distances from the EPFL CA1 training volume: test half 0.10, ventral nerve cord in another microscope 0.65,
    inverted test half 0.72, test half in 16 bits 1113.
    """
    wanted: npt.NDArray[np.float64] = np.asarray(quantiles, float)
    own = np.quantile(greys.astype(np.float64), np.linspace(0, 1, len(wanted)))
    spread = float(wanted.std())
    distance = float(np.abs(own - wanted).mean())
    return distance / spread if spread > 0 else float(distance > 0)
