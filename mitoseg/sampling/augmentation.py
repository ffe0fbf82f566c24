r"""Augmentation of training tiles on their device, including the artefacts of sectioning and EM imaging.

A tile is treated as a stack of sections (S, Y, X): the slices of a volume, or those that form the channels of a 2D
network. MONAI transforms do what is common to all images; artefacts specific to sections are defined here, as MONAI
dictionary transforms of a normalised stack ``image``. Labels are unchanged, except those of shifted sections; if only
the middle section is labelled, it is never removed or shifted. Each sample has its own seed, so its augmentation
depends neither on its batch nor on the number of devices. (Noise is drawn on the device: from the same seed, a CPU and
a GPU draw different noise.)

Rotation by any angle, scaling and deformation are applied to a stack in one resampling:

    output voxel  --rotate, scale, tilt about the centre-->  --add the displacement-->  sampled position

The free-form deformation uses cubic B-splines on a coarse grid of random displacements (Rueckert et al., IEEE TMI
18(8), 1999), which is smooth and cheap. MONAI's elastic transforms resize the whole field in 2D, which takes five
times as long, or smooth noise at every voxel in 3D; and they cannot mark what lies outside the tile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.networks.layers.simplelayers import GaussianFilter
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandCoarseDropoutd,
    RandGaussianSmoothd,
    RandHistogramShiftd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from monai.transforms.spatial.dictionary import RandSimulateLowResolutiond
from monai.transforms.transform import MapTransform, Randomizable, RandomizableTransform
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from mitoseg.datasets.base import IGNORE
from mitoseg.errors import UserError
from mitoseg.sampling.positions import check_choice

Transform = Callable[[Any], Mapping[Any, Any]]
Random = np.random.RandomState
Changed = Mapping[Hashable, Tensor]
Effect = Callable[[Tensor, Tensor, Random], Changed]

IMAGE, LABEL = "image", "label"  # keys of a sample, for further MONAI dictionary transforms

_SPACING = 32  # voxels between nodes of the deformation


class Augmenter:
    """Applies MONAI dictionary transforms to each sample of a batch, with the sample's own seed.

    Samples have the keys `IMAGE`, float32 (S, Y, X), normalised, and `LABEL`, uint8 (1 or S, Y, X).
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = Compose(list(transforms))
        self._random = np.random.RandomState()  # shared: creating one takes longer than most transforms

    @torch.no_grad()
    def __call__(self, image: Tensor, label: Tensor, seed_b: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch; the given tensors are not modified.

        Args:
            image: float32, normalised, (B, C, Y, X) or (B, 1, Z, Y, X).
            label: int64 of 0, 1, 255, (B, Y, X) or (B, Z, Y, X).
            seed_b: int64 (B,).
        """
        stack = image.flatten(1, -3)
        sections = label.reshape(len(label), -1, *label.shape[-2:]).to(torch.uint8)
        tracked = get_track_meta()  # MONAI's metadata, which take time and are not used here
        set_track_meta(False)
        try:
            pairs = [self._sample(*sample) for sample in zip(stack, sections, seed_b.tolist(), strict=True)]
        finally:
            set_track_meta(tracked)
        images, labels = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        return images.reshape(image.shape), labels.reshape(label.shape).long()

    def _sample(self, image_syx: Tensor, label_syx: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        self._random.seed(int(np.random.SeedSequence(seed % 2**64).generate_state(1)[0]))
        for transform in self.transforms.transforms:
            if isinstance(transform, Randomizable):
                transform.set_random_state(state=self._random)
        given = {IMAGE: image_syx.clone(), LABEL: label_syx}  # some MONAI transforms modify the image in place
        try:
            result: dict[Hashable, Any] = self.transforms(given)
        except RuntimeError as error:  # MONAI wraps the transform's own error
            cause = error.__cause__ or error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise UserError(f"augmentation failed, {error}", str(cause), "check that transform's options") from error
        for key, before in given.items():
            if result[key].shape != before.shape:
                shapes = f"{tuple(before.shape)} to {tuple(result[key].shape)}"
                raise UserError(f"augmentation changed the shape of the {key}", shapes, "leave that transform out")
        found = result[LABEL]
        if found is not given[LABEL] and not ((found == 0) | (found == 1) | (found == IGNORE)).all():
            raise UserError("augmentation produced labels other than 0, 1 and 255", None, "give mode=nearest for them")
        return result[IMAGE].float(), found.to(torch.uint8)


class EMAugmentation(Augmenter):
    """Augmentation for electron microscopy; each effect is applied to a tile with its own probability.

    ``conf/augmentation/em.yaml`` explains these probabilities and the other options; ``extra`` transforms are applied
    last.
    """

    def __init__(
        self,
        deform: float = 0.3,
        magnitude: float = 3.0,
        scale: float = 0.25,
        volumetric: bool = False,
        outside: str = "ignore",
        contrast: float = 0.5,
        gamma: float = 1.5,
        gain: float = 0.25,
        curve: float = 0.05,
        blur: float = 0.1,
        resolution: float = 0.1,
        coarser: float = 1.5,
        noise: float = 0.2,
        sections: float = 0.2,
        defocus: float = 0.1,
        missing: float = 0.1,
        shifted: float = 0.1,
        cutout: float = 0.1,
        extra: Sequence[Transform] = (),
    ) -> None:
        given = {"deform": deform, "contrast": contrast, "blur": blur, "noise": noise, "sections": sections}
        given |= {"defocus": defocus, "missing": missing, "shifted": shifted, "cutout": cutout}
        given |= {"curve": curve, "resolution": resolution}
        for name, value in given.items():
            if not 0 <= value <= 1:
                raise UserError(f"augmentation.{name} is not a probability", value, "give a number from 0 to 1")
        least = (("magnitude", magnitude, 0), ("scale", scale, 0), ("gamma", gamma, 1), ("gain", gain, 0))
        for name, value, low in (*least, ("coarser", coarser, 1)):
            if value < low:
                raise UserError(f"augmentation.{name} is too small", value, f"give {low} or more")
        check_choice("outside", outside, ("ignore", "reflect"))
        power: dict[str, Any] = {"prob": contrast / 2, "gamma": (1 / gamma, gamma), "retain_stats": True}
        coarse: dict[str, Any] = {"zoom_range": (1 / coarser, 1.0), "downsample_mode": "area"}
        holes: dict[str, Any] = {"holes": 1, "max_holes": 4, "spatial_size": 8, "max_spatial_size": 24}
        super().__init__(
            [
                Warpd(deform, magnitude, scale, tilt=8.0 if volumetric else 0.0, outside=outside),
                RandHistogramShiftd(IMAGE, prob=curve, num_control_points=(12, 24)),
                Effectd(shifted_sections, shifted),
                Effectd(missing_section, missing),
                RandAdjustContrastd(IMAGE, **power),
                RandAdjustContrastd(IMAGE, **power, invert_image=True),
                RandScaleIntensityd(IMAGE, factors=gain, prob=contrast),
                RandShiftIntensityd(IMAGE, offsets=gain, prob=contrast),
                Effectd(partial(section_contrast, gain=gain), sections),
                Effectd(blurred_section, defocus),
                RandGaussianSmoothd(IMAGE, prob=blur, sigma_x=(0.5, 1.5), sigma_y=(0.5, 1.5)),
                RandSimulateLowResolutiond(IMAGE, prob=resolution, upsample_mode="bilinear", **coarse),
                Effectd(gaussian_noise, noise),
                AsVolumed(RandCoarseDropoutd(IMAGE, prob=cutout, fill_value=(-1.0, 1.0), **holes)),
                *extra,
            ]
        )


class Effectd(RandomizableTransform, MapTransform):
    """Changes the image (S, Y, X) of a sample, and possibly its label (1 or S, Y, X), with a given probability.

    The effect is called with image, label and a random state, and returns a dictionary of those that it has changed.
    """

    def __init__(self, effect: Effect, prob: float = 0.1) -> None:
        MapTransform.__init__(self, [IMAGE])
        RandomizableTransform.__init__(self, prob)
        self.effect = effect

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply the effect to the sample with its probability."""
        self.randomize(None)
        return {**data, **(self.effect(data[IMAGE], data[LABEL], self.R) if self._do_transform else {})}


def missing_section(image: Tensor, label: Tensor, random: Random) -> Changed:
    """Replace a random section by its neighbour, by a constant grey value, or by noise."""
    count = len(image)
    alone = len(label) < count or count == 1  # the labelled section is the middle one
    choices = [s for s in range(count) if not (alone and s == count // 2)]
    if not choices:
        return {}
    section, kind, changed = choices[int(random.randint(len(choices)))], int(random.randint(3)), image.clone()
    if kind == 0:
        changed[section] = image[section - 1 if section else 1]
        return {IMAGE: changed}
    changed[section] = float(random.uniform(-1.5, 1.5))
    if kind == 2:
        changed[section] += torch.from_numpy(random.standard_normal(image.shape[1:])).to(image)
    return {IMAGE: changed}


def blurred_section(image: Tensor, label: Tensor, random: Random, sigma: float = 3.0) -> Changed:
    """Defocus a random section: a Gaussian blur of up to ``sigma`` pixels."""
    section, changed = int(random.randint(len(image))), image.clone()
    blur = GaussianFilter(2, float(random.uniform(0.5, sigma))).to(image.device)
    changed[section] = blur(image[section][None, None])[0, 0]
    return {IMAGE: changed}


def shifted_sections(image: Tensor, label: Tensor, random: Random, reach: float = 4.0) -> Changed:
    """Shift one section, or all from it outwards, by up to ``reach`` pixels in y and x; the middle one stays.

    If every section is labelled, labels move with them, by whole pixels. At the edges sections are reflected.
    """
    count, found = len(image), dict[Hashable, Tensor]()
    if count == 1:
        return found
    first = last = int(random.choice([s for s in range(count) if s != count // 2]))
    if random.rand() < 0.5:
        first, last = (0, first) if first < count // 2 else (first, count - 1)
    y, x = random.uniform(-reach, reach, 2).tolist()
    for key, stack, shift in ((IMAGE, image, (y, x)), (LABEL, label, (round(y), round(x)))):
        if len(stack) == count:
            found[key] = stack.clone()
            found[key][first : last + 1] = shifted(stack[first : last + 1], shift)
    return found


def shifted(stack_syx: Tensor, shift: tuple[float, float]) -> Tensor:
    """Shift a stack along y and x, with linear interpolation and reflection at the edges."""
    for axis, distance in ((-2, shift[0]), (-1, shift[1])):
        length, whole = stack_syx.shape[axis], math.floor(distance)
        at = torch.arange(length, device=stack_syx.device) - whole
        near, far = (torch.minimum(i % (2 * length), 2 * length - 1 - i % (2 * length)) for i in (at, at - 1))
        moved = stack_syx.index_select(axis, near)
        between = distance != whole
        stack_syx = torch.lerp(moved, stack_syx.index_select(axis, far), distance - whole) if between else moved
    return stack_syx


def section_contrast(image: Tensor, label: Tensor, random: Random, gain: float = 0.25) -> Changed:
    """Change contrast (by a fraction) and brightness (in standard deviations) of each section by up to ``gain``."""
    factor_s2 = torch.from_numpy(random.uniform(-gain, gain, (2, len(image), 1, 1))).to(image)
    return {IMAGE: image * (1 + factor_s2[0]) + factor_s2[1]}


def gaussian_noise(image: Tensor, label: Tensor, random: Random, std: float = 0.3) -> Changed:
    """Add noise of up to ``std``, drawn on the tile's device; MONAI draws on the host, which is five times slower."""
    generator = torch.Generator(image.device).manual_seed(int(random.randint(2**31)))
    noise = torch.randn(image.shape, generator=generator, device=image.device)
    return {IMAGE: image + float(random.uniform(0, std)) * noise}


class AsVolumed(Randomizable):
    """Pass a stack in which each section is labelled to a transform as a volume: (1, Z, Y, X) instead of (S, Y, X).

    Other stacks are passed unchanged, as an image (C, Y, X) of several channels.
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> AsVolumed:
        """Forward the random state to the transform."""
        inner: object = self.transform
        if isinstance(inner, Randomizable):
            inner.set_random_state(seed, state)
        return self

    def randomize(self, data: Any) -> None:  # noqa: ANN401 (MONAI's own)
        """Do nothing: only the wrapped transform is random."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply the transform and return stacks again."""
        deep = len(data[LABEL]) == len(data[IMAGE]) > 1
        if not deep:
            return dict(self.transform(dict(data)))
        changed = self.transform({key: data[key][None] for key in (IMAGE, LABEL)})
        return {**data, **{key: changed[key][0] for key in (IMAGE, LABEL)}}


class Warpd(Effectd):
    """Rotate, scale and deform a stack, with linear interpolation of the image and nearest neighbour for labels.

    ``magnitude`` is the standard deviation of the nodes' displacements, in voxels; scales lie between
    1 / (1 + scale) and 1 + scale, and those along y and x differ by a ratio of up to ``stretch``; ``rotation`` and
    ``tilt`` are the largest angles in degrees about z, and about y and x. All sections are deformed in the same way
    unless there is a tilt, which is for cubic voxels with every section labelled. Outside the tile the image is
    reflected; so is the label if ``outside`` is ``reflect``, else it is `IGNORE`.
    """

    def __init__(
        self,
        prob: float = 0.2,
        magnitude: float = 3.0,
        scale: float = 0.25,
        stretch: float = 1.1,
        rotation: float = 180.0,
        tilt: float = 0.0,
        outside: str = "ignore",
    ) -> None:
        super().__init__(self.warp, prob)
        self.magnitude, self.scale, self.stretch = magnitude, math.log1p(scale), math.log(stretch)
        self.rotation, self.tilt, self.outside = math.radians(rotation), math.radians(tilt), outside

    def warp(self, image: Tensor, label: Tensor, random: Random) -> Changed:
        """Warp image and labels."""
        deep = self.tilt > 0 and len(label) == len(image) > 1
        tile, truth = (image[None], label[None]) if deep else (image, label)
        grid = self.grid(tile.shape[1:], image.device)
        read = partial(grid_sample, grid=grid, padding_mode="reflection", align_corners=False)
        moved = read(truth[None].float(), mode="nearest")[0].to(label.dtype)
        if self.outside != "reflect":
            moved = moved.masked_fill((grid[0].abs() > 1).any(-1), IGNORE)
        return {IMAGE: read(tile[None], mode="bilinear").reshape(image.shape), LABEL: moved.reshape(label.shape)}

    def grid(self, size: Sequence[int], device: torch.device) -> Tensor:
        """Sampling grid for ``grid_sample``: (1, *size, dimensions), x first, from -1 to 1 over the tile's extent."""
        half = np.array(size[::-1]) / 2
        matrix = torch.from_numpy(self.matrix(len(size)) * half / half[:, None])
        theta = torch.cat([matrix, torch.zeros(len(size), 1)], dim=1).float().to(device)
        grid = affine_grid(theta[None], [1, 1, *size], align_corners=False)
        return grid + self.deformation(size, device) / torch.tensor(half, dtype=torch.float32, device=device)

    def matrix(self, ndim: int) -> npt.NDArray[np.float64]:
        """The linear map from output to tile, in voxels about the centre, x first."""
        turn, about_y, about_x = (self.R.uniform(-1, 1, 3) * (self.rotation, self.tilt, self.tilt)).tolist()
        zoom, stretch = self.R.uniform(-1, 1) * self.scale, self.R.uniform(-0.5, 0.5) * self.stretch
        matrix = _rotation(ndim, 0, 1, turn)
        if ndim == 3:
            matrix = _rotation(3, 0, 2, about_y) @ _rotation(3, 1, 2, about_x) @ matrix
        inverse: npt.NDArray[np.float64] = matrix / np.exp([zoom + stretch, zoom - stretch, zoom])[:ndim]
        return inverse

    def deformation(self, size: Sequence[int], device: torch.device) -> Tensor:
        """Displacement of each voxel, in voxels: (*size, dimensions), x first."""
        weights = [spline_weights(length, _SPACING).to(device) for length in size]
        nodes = self.R.normal(0, self.magnitude, (*(w.shape[1] for w in weights), len(size)))
        field = torch.from_numpy(nodes).float().to(device)
        for axis, weight in enumerate(weights):
            field = torch.tensordot(weight, field, dims=([1], [axis])).movedim(0, axis)
        return field


def _rotation(ndim: int, a: int, b: int, angle: float) -> npt.NDArray[np.float64]:
    """Rotation in the plane of two axes."""
    matrix = np.eye(ndim)
    matrix[[a, a, b, b], [a, b, a, b]] = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    return matrix


def spline_weights(length: int, spacing: float) -> Tensor:
    """Cubic B-spline weights of each node at each voxel, (length, nodes); rows add up to 1."""
    at = (torch.arange(length) + 0.5) / spacing
    away = (at[:, None] - torch.arange(-1, math.ceil(length / spacing) + 2)).abs()
    near, far = 2 / 3 - away**2 + away**3 / 2, (2 - away).clamp(min=0) ** 3 / 6
    return torch.where(away < 1, near, far)


@dataclass(frozen=True)
class TileSymmetry:
    """A permutation of the axes z, y, x followed by reflections."""

    order: tuple[int, ...] = (0, 1, 2)
    flips: tuple[int, ...] = ()

    def __call__(self, voxels_zyx: Tensor) -> Tensor:
        """A view, or a mirrored copy."""
        turned = voxels_zyx.permute(self.order)
        return turned.flip(self.flips) if self.flips else turned


def _all(orders: list[tuple[int, ...]], axes: tuple[int, ...]) -> tuple[TileSymmetry, ...]:
    flips = [chosen for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]
    return tuple(TileSymmetry(order, flip) for order in orders for flip in flips)


TILE_SYMMETRIES: dict[str, tuple[TileSymmetry, ...]] = {
    "none": (TileSymmetry(),),
    "dihedral": _all([(0, 1, 2), (0, 2, 1)], (1, 2)),
    "dihedral_z": _all([(0, 1, 2), (0, 2, 1)], (0, 1, 2)),
    "cubic": _all(list(itertools.permutations(range(3))), (0, 1, 2)),
}
"""Rotations and reflections of a tile that need no interpolation; the first of each is the identity.

``dihedral``: quarter turns and reflections in the plane; ``dihedral_z``: those, and the same with z reflected (the
order of the channels, if these are neighbouring slices); ``cubic``: all of the cube, for cubic voxels and tiles.
"""
