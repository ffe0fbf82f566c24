"""Augmentation of training tiles on their device: what happens to sections on their way from tissue to voxels.

A tile is taken as a stack of sections (S, Y, X): the slices of a volume, or those that make the channels of a network
on slices. MONAI's transforms do what is common to all images, `mitoseg.blocks.sections` what only sections suffer.
Each sample has a seed of its own: what is done to it depends neither on its batch nor on the number of devices. (Noise
is drawn on the device: from one seed a CPU and a GPU draw different noise.)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
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
from monai.transforms.transform import Randomizable
from torch import Tensor

from mitoseg.blocks.options import check_choice
from mitoseg.blocks.sections import (
    IMAGE,
    LABEL,
    BlurredSectiond,
    MissingSectiond,
    SectionContrastd,
    ShiftedSectiond,
)
from mitoseg.blocks.tile_transforms import AsVolumed, GaussianNoised
from mitoseg.blocks.warp import OUTSIDE, Warpd
from mitoseg.datasets.base import IGNORE
from mitoseg.errors import UserError

Sample = dict[Hashable, Any]
Transform = Callable[[Any], Mapping[Any, Any]]


class Augmenter:
    """Applies transforms to each sample of a batch, with the sample's own seed.

    Args:
        transforms: MONAI's dictionary transforms, or others like them; samples have the keys `IMAGE`, float32 (S, Y,
            X), normalised, and `LABEL`, uint8 (1 or S, Y, X).
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = Compose(list(transforms))
        self._random = np.random.RandomState()  # one for all transforms: making one takes longer than most of them

    @torch.no_grad()
    def __call__(self, image: Tensor, label: Tensor, seed_b: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: float32, normalised, (B, C, Y, X) or (B, 1, Z, Y, X).
            label: int64 of 0, 1, 255, (B, Y, X) or (B, Z, Y, X).
            seed_b: int64 (B,).

        Returns:
            Both, of the same shapes; the given ones stay as they are.

        Raises:
            UserError: A transform failed, changed the shape, or made other labels.
        """
        stack = image.flatten(1, -3)
        sections = label.reshape(len(label), -1, *label.shape[-2:]).to(torch.uint8)
        with _plain_tensors():
            pairs = [self._sample(*sample) for sample in zip(stack, sections, seed_b.tolist(), strict=True)]
        images, labels = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        return images.reshape(image.shape), labels.reshape(label.shape).long()

    def _sample(self, image_syx: Tensor, label_syx: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        self._random.seed(int(np.random.SeedSequence(seed % 2**64).generate_state(1)[0]))
        for transform in self.transforms.transforms:
            if isinstance(transform, Randomizable):
                transform.set_random_state(state=self._random)
        given = {IMAGE: image_syx.clone(), LABEL: label_syx}  # some of MONAI's write into the image
        try:
            result: Sample = self.transforms(given)
        except RuntimeError as error:  # MONAI's, around the transform's own
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
            raise UserError("augmentation made labels other than 0, 1 and 255", None, "give mode=nearest for them")
        return result[IMAGE].float(), found.to(torch.uint8)


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Keep MONAI from tracking metadata, which costs time and which nobody asks for here."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class EMAugmentation(Augmenter):
    """Augmentation for electron microscopy; each effect strikes a tile with its own probability.

    Args:
        deform: Probability of a smooth deformation with a turn by any angle and another scale; what comes from beyond
            the tile is its reflection.
        magnitude: Standard deviation of the displacements of the deformation's nodes, 32 pixels apart, in pixels.
        scale: Largest change of scale, as a share.
        volumetric: Deform through z as well and tilt by up to 8 degrees: for volumes of cubic voxels.
        outside: Label of what comes from beyond the tile; see `mitoseg.blocks.warp.OUTSIDE`.
        contrast: Probability of another contrast and brightness, and of another gamma, of the whole tile.
        gamma: Largest exponent; the smallest is its inverse. Mean and deviation stay.
        gain: Largest change of contrast, as a share, and of brightness, in standard deviations of the grey values.
        curve: Probability of a random rising curve of grey values.
        blur: Probability of a Gaussian blur of all sections.
        resolution: Probability that sections look as if their pixels were larger.
        coarser: How many times as large at most.
        noise: Probability of Gaussian noise.
        sections: Probability that each section has a contrast and brightness of its own.
        defocus: Probability of a blurred section.
        missing: Probability of a missing section.
        shifted: Probability of a shifted section, or of all beyond it.
        cutout: Probability of holes of 8 to 24 voxels filled with noise; their labels stay.
        extra: Further transforms, applied last.

    Raises:
        UserError: A probability or another number is out of range.
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
        check_choice("outside", outside, OUTSIDE)
        power: dict[str, Any] = {"prob": contrast / 2, "gamma": (1 / gamma, gamma), "retain_stats": True}
        coarse: dict[str, Any] = {"zoom_range": (1 / coarser, 1.0), "downsample_mode": "area"}
        holes: dict[str, Any] = {"holes": 1, "max_holes": 4, "spatial_size": 8, "max_spatial_size": 24}
        super().__init__(
            [
                Warpd(deform, magnitude, scale, tilt=8.0 if volumetric else 0.0, outside=outside),
                RandHistogramShiftd(IMAGE, prob=curve, num_control_points=(12, 24)),
                ShiftedSectiond(prob=shifted),
                MissingSectiond(prob=missing),
                RandAdjustContrastd(IMAGE, **power),
                RandAdjustContrastd(IMAGE, **power, invert_image=True),
                RandScaleIntensityd(IMAGE, factors=gain, prob=contrast),
                RandShiftIntensityd(IMAGE, offsets=gain, prob=contrast),
                SectionContrastd(prob=sections, gain=gain),
                BlurredSectiond(prob=defocus),
                RandGaussianSmoothd(IMAGE, prob=blur, sigma_x=(0.5, 1.5), sigma_y=(0.5, 1.5)),
                RandSimulateLowResolutiond(IMAGE, prob=resolution, upsample_mode="bilinear", **coarse),
                GaussianNoised(prob=noise),
                AsVolumed(RandCoarseDropoutd(IMAGE, prob=cutout, fill_value=(-1.0, 1.0), **holes)),
                *extra,
            ]
        )
