r"""What surrounds a voxel, as numbers: Gaussian derivatives of the image at several scales.

At each scale sigma (nm) the image f is smoothed to f_s, and of that come

    value        f_s
    gradient     sigma |grad f_s|
    laplacian    sigma^2 (f_zz + f_yy + f_xx)
    hessian0..2  sigma^2 times the eigenvalues of the matrix of second derivatives, the largest first

The powers of sigma make scales comparable (Lindeberg, IJCV 30, 1998). All but the value do not change when the tissue
is turned. Derivatives are central differences of f_s, per nm, so that thick sections count as what they are.

A volume is read slab by slab with a halo, beyond its faces its border voxels are repeated, and each answer is the same
to the last bit however it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.volumes import Array, ArrayVolume, Volume, check_image_values

Image = npt.NDArray[np.generic]

FloatArray = npt.NDArray[np.float32]
Scalar = TypeVar("Scalar", bound=np.generic)
Margin = tuple[int, ...]
ImageLike = Image | Volume
TRUNCATE = 3.0  # radius of a Gaussian filter, in standard deviations
KINDS = ("value", "gradient", "laplacian", "hessian0", "hessian1", "hessian2")
LEAST = 0.5  # along an axis where sigma is below this many voxels the image is blurred enough already


@dataclass(frozen=True)
class VoxelFeatures:
    """Multi-scale Gaussian derivatives.

    >>> features = VoxelFeatures((10.0,), (30.0, 5.0, 5.0))
    >>> features.halo, features.names[:2]
    ((1, 7, 7), ('value 10 nm', 'gradient 10 nm'))
    >>> features(np.zeros((3, 8, 9), np.uint8)).shape
    (6, 3, 8, 9)
    """

    sigmas: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0, 80.0)  # nm
    voxel_size: tuple[float, float, float] = (5.0, 5.0, 5.0)  # (z, y, x) in nm

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", tuple(float(s) for s in self.sigmas))
        object.__setattr__(self, "voxel_size", tuple(float(v) for v in self.voxel_size))
        if not self.sigmas or not all(math.isfinite(s) and s > 0 for s in self.sigmas):
            raise UserError("the scales of the features are not lengths", self.sigmas, "give sigmas in nm, above zero")
        if len(self.voxel_size) != 3 or not all(math.isfinite(v) and v > 0 for v in self.voxel_size):
            raise UserError("no voxel size", self.voxel_size, "give (z, y, x) in nm")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features, in their order: all of the first scale, then of the next."""
        return tuple(f"{kind} {sigma:g} nm" for sigma in self.sigmas for kind in KINDS)

    @property
    def halo(self) -> Margin:
        """Voxels (z, y, x) beyond a voxel on each side that its features depend on."""
        return self._reach(max(self.sigmas))

    def __call__(self, image_zyx: Image) -> FloatArray:
        """Features (F, Z, Y, X) of a whole image, whose border voxels are repeated beyond it."""
        return self.inside(np.pad(image_zyx, [(h, h) for h in self.halo], mode="edge"))

    def inside(self, image_zyx: Image, threads: int = 1) -> FloatArray:
        """Features (F, Z, Y, X) of an image without `halo` voxels on each side; the threads share the scales."""
        shape = [n - 2 * h for n, h in zip(image_zyx.shape, self.halo, strict=True)]
        if min(shape) < 1:
            raise UserError("the image is no larger than the halo of its features", image_zyx.shape, "give more of it")
        out = np.empty((len(self.names), *shape), np.float32)

        def fill(scale: int) -> None:
            sigma = self.sigmas[scale]
            margin = [h - r for h, r in zip(self.halo, self._reach(sigma), strict=True)]
            rows = out[scale * len(KINDS) : (scale + 1) * len(KINDS)]
            self._scale(crop(image_zyx, margin).astype(np.float32), sigma, rows)

        # the largest first: it takes the longest
        order = sorted(range(len(self.sigmas)), key=lambda scale: -self.sigmas[scale])
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, order))  # raises what a thread has raised
        return out

    def _reach(self, sigma: float) -> Margin:
        """Halo of one scale: its filter, and one voxel for the differences."""
        return tuple(radius_of(sigma / v) + 1 for v in self.voxel_size)

    def _scale(self, image_zyx: FloatArray, sigma: float, out: FloatArray) -> None:
        """Fill the rows of one scale from the image with that scale's halo."""
        step = [sigma / v for v in self.voxel_size]
        smooth = gaussian(image_zyx, step)
        for z in range(len(smooth) - 2):  # slice by slice the temporaries stay in the cache
            slices = smooth[z : z + 3]
            hessian = second_differences(slices, step)
            out[0, z] = slices[1][1:-1, 1:-1]
            out[1, z] = np.sqrt(sum(g * g for g in first_differences(slices, step)))
            out[2, z] = hessian[0] + hessian[1] + hessian[2]
            out[3, z], out[4, z], out[5, z] = symmetric_eigenvalues(hessian)


def radius_of(sigma: float) -> int:
    """Voxels to each side that a Gaussian filter of ``sigma`` voxels looks at."""
    return math.ceil(TRUNCATE * sigma - 1e-9) if sigma >= LEAST else 0


def crop(array_zyx: npt.NDArray[Scalar], margin: Sequence[int]) -> npt.NDArray[Scalar]:
    """The array without ``margin`` voxels on both sides of each axis."""
    return array_zyx[tuple(slice(m, n - m) for m, n in zip(margin, array_zyx.shape, strict=True))]


def gaussian(image_zyx: FloatArray, sigma: Sequence[float]) -> FloatArray:
    """Gaussian filter where all of it lies inside: the image less `radius_of` ``sigma`` (voxels) on each side."""
    for axis, s in enumerate(sigma):
        radius = radius_of(s)
        if radius:
            weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / s) ** 2)
            filtered = correlate1d(image_zyx, weights / weights.sum(), axis, mode="nearest")
            image_zyx = crop(filtered, [radius * (a == axis) for a in range(3)])
    return image_zyx


def first_differences(slices: FloatArray, step: Sequence[float]) -> list[FloatArray]:
    """Derivatives along z, y, x of the middle one of three slices, without its border, times ``step``."""
    before, here, after = slices
    inner = (slice(1, -1), slice(1, -1))
    z, y, x = (np.float32(s / 2) for s in step)
    return [
        (after[inner] - before[inner]) * z,
        (here[2:, 1:-1] - here[:-2, 1:-1]) * y,
        (here[1:-1, 2:] - here[1:-1, :-2]) * x,
    ]


def second_differences(slices: FloatArray, step: Sequence[float]) -> list[FloatArray]:
    """Second derivatives zz, yy, xx, zy, zx, yx, as `first_differences`, times both steps."""
    before, here, after = slices
    inner = (slice(1, -1), slice(1, -1))
    z, y, x = (np.float32(s) for s in step)
    twice = 2 * here[inner]
    across = after - before
    return [
        (before[inner] + after[inner] - twice) * (z * z),
        (here[2:, 1:-1] + here[:-2, 1:-1] - twice) * (y * y),
        (here[1:-1, 2:] + here[1:-1, :-2] - twice) * (x * x),
        (across[2:, 1:-1] - across[:-2, 1:-1]) * (z * y / 4),
        (across[1:-1, 2:] - across[1:-1, :-2]) * (z * x / 4),
        (here[2:, 2:] - here[2:, :-2] - here[:-2, 2:] + here[:-2, :-2]) * (y * x / 4),
    ]


def symmetric_eigenvalues(matrix: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray, FloatArray]:
    r"""Eigenvalues of symmetric 3x3 matrices, one matrix a voxel.

    With q = tr(A) / 3, p^2 = tr((A - q I)^2) / 6 and r = det((A - q I) / p) / 2 they are

        q + 2 p cos(phi),  q + 2 p cos(phi + 2 pi / 3),  and 3 q less both,   phi = arccos(r) / 3

    (Smith, Communications of the ACM 4, 1961). In float32 the error is about 1e-3 p where two of them meet. The matrix
    is six arrays aa, bb, cc, ab, ac, bc; of the three that come back the first holds the largest.
    """
    aa, bb, cc, ab, ac, bc = matrix
    q = (aa + bb + cc) * np.float32(1 / 3)
    a, b, c = aa - q, bb - q, cc - q
    off = ab * ab + ac * ac + bc * bc
    p = np.sqrt((a * a + b * b + c * c + off + off) * np.float32(1 / 6))
    # det(A - q I) / (2 p^3), in steps that neither overflow nor divide by zero
    determinant = a * (b * c - bc * bc) - ab * (ab * c - bc * ac) + ac * (ab * bc - b * ac)
    cube = np.maximum(p * p * p, np.finfo(np.float32).tiny)
    r = np.clip(determinant / (cube + cube), -1, 1)
    phi = np.arccos(r, out=r)
    phi *= np.float32(1 / 3)
    p += p
    largest = q + p * np.cos(phi)
    smallest = q + p * np.cos(phi + np.float32(2 * np.pi / 3))
    middle = 3 * q - largest - smallest
    return largest, middle, smallest


BUDGET = 2**28  # numbers (float32) of features that are held at a time, which is 1 GiB


def as_volume(image_zyx: ImageLike) -> Volume:
    """An array or a volume as a volume."""
    if isinstance(image_zyx, Volume):
        return image_zyx
    image_zyx = np.asarray(image_zyx)
    if image_zyx.ndim != 3 or not image_zyx.size:
        raise UserError("no volume", image_zyx.shape, "give an array of the axes z, y, x")
    return ArrayVolume(image_zyx)


def read_with_halo(volume: Volume, box: Box, halo: Sequence[int]) -> Array:
    """Read a box and ``halo`` voxels around it, the volume's border voxels repeated beyond it."""
    wanted = box.grow(halo)
    read = wanted.clip(volume.box)
    image_zyx = volume.read(read)
    check_image_values(image_zyx, volume.path)
    missing = zip(read.start, wanted.start, wanted.stop, read.stop, strict=True)
    return np.pad(image_zyx, [(a - b, c - d) for a, b, c, d in missing], mode="edge")


def slab_depth(volume: Volume, features: VoxelFeatures) -> int:
    """Slices whose features fit into the `BUDGET`, at least 1."""
    return max(1, BUDGET // (len(features.names) * volume.shape[1] * volume.shape[2]))


BLOCK = 6_000_000  # voxels of a block: what bounds the memory of its features


def even_blocks(shape: Sequence[int], voxels: int = BLOCK) -> list[Box]:
    """Cut a volume into blocks of about equal shape, of at most ``voxels`` (but for rounding), as cubic as can be."""
    even = [1, 1, 1]
    room = float(voxels)
    for axes_left, axis in zip((3, 2, 1), np.argsort(shape, kind="stable").tolist(), strict=True):
        edge = max(1.0, room ** (1 / axes_left) + 1e-6)
        even[axis] = math.ceil(shape[axis] / math.ceil(shape[axis] / edge))
        room /= even[axis]
    return list(tiles(Box.of_shape(shape), even))


def grey_range(volume: Volume, seed: int, voxels: int = 2_000_000) -> tuple[float, float]:
    """Grey values below and above which lies one percent of the voxels, from a sample of slices; high above low."""
    z, y, x = volume.shape
    count = min(z, max(1, voxels // (y * x)))
    chosen = np.sort(np.random.default_rng(seed).permutation(z)[:count]).tolist()
    sample = np.concatenate([volume.read(Box((k, 0, 0), (k + 1, y, x))).ravel() for k in chosen])
    low, high = (float(v) for v in np.percentile(sample, (1.0, 99.0)))
    return low, high if high > low else low + 1.0


def scaled(image_zyx: npt.NDArray[np.generic], grey: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Grey values as shares of their range, cut to 0 ... 1."""
    unit = (image_zyx.astype(np.float32) - np.float32(grey[0])) / np.float32(grey[1] - grey[0])
    return np.clip(unit, 0, 1, out=unit)
