"""Augmentation of training tiles on their device: what happens to sections on their way from tissue to voxels.

A tile is taken as a stack of sections (S, Y, X): the slices of a volume, or those that make the channels of a network
on slices. MONAI's transforms do what is common to all images, `mitoseg.blocks.sections` what only sections suffer.
Each sample has a seed of its own: what is done to it depends neither on its batch nor on the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_obj import set_track_meta
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandCoarseDropoutd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from monai.transforms.spatial.dictionary import Rand2DElasticd
from torch import Tensor

from mitoseg.blocks.sections import BlurredSectiond, MissingSectiond, SectionContrastd, ShiftedSectiond
from mitoseg.errors import UserError

Sample = dict[Hashable, Any]
Transform = Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]]

IMAGE, LABEL = "image", "label"
"""Keys of a sample, for further transforms of MONAI's dictionary kind."""


class Augmenter:
    """Applies transforms to each sample of a batch, with the sample's own seed.

    Args:
        transforms: MONAI's dictionary transforms, or others like them; samples have the keys `IMAGE`, float32 (S, Y,
            X), normalised, and `LABEL`, uint8 (1 or S, Y, X).
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = Compose(list(transforms))

    def __call__(self, image: Tensor, label: Tensor, seed_b: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: float32, normalised, (B, C, Y, X) or (B, 1, Z, Y, X).
            label: int64 of 0, 1, 255, (B, Y, X) or (B, Z, Y, X).
            seed_b: int64 (B,).

        Returns:
            Both, of the same shapes.
        """
        stack = image.flatten(1, -3)
        sections = label.reshape(len(label), -1, *label.shape[-2:]).to(torch.uint8)
        pairs = [self._sample(*sample) for sample in zip(stack, sections, seed_b.tolist(), strict=True)]
        images, labels = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        return images.reshape(image.shape), labels.reshape(label.shape).long()

    def _sample(self, image_syx: Tensor, label_syx: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        set_track_meta(False)
        self.transforms.set_random_state(seed=seed)
        result: Sample = self.transforms({IMAGE: image_syx.contiguous(), LABEL: label_syx.contiguous()})
        return result[IMAGE].float(), result[LABEL]


class EMAugmentation(Augmenter):
    """Augmentation for electron microscopy; each effect strikes a tile with its own probability.

    Args:
        deform: Probability of a smooth in-plane deformation with a turn by any angle and another scale; what comes
            from beyond the tile is its reflection.
        magnitude: Pixels by which the deformation moves, at most about twice as much.
        scale: Largest change of scale, as a share.
        contrast: Probability of another gamma, brightness and contrast of the whole tile.
        gamma: Largest exponent; the smallest is its inverse.
        gain: Largest change of contrast, as a share, and of brightness, in standard deviations of the grey values.
        blur: Probability of a Gaussian blur of all sections.
        noise: Probability of Gaussian noise.
        sections: Probability that a section has a contrast and brightness of its own.
        defocus: Probability of a blurred section.
        missing: Probability of a missing section.
        shifted: Probability of a shifted section.
        cutout: Probability of holes filled with one grey value; their labels stay.
        extra: Further transforms, applied last.

    Raises:
        UserError: A probability or another number is out of range.
    """

    def __init__(
        self,
        deform: float = 0.3,
        magnitude: float = 2.0,
        scale: float = 0.2,
        contrast: float = 0.5,
        gamma: float = 1.5,
        gain: float = 0.25,
        blur: float = 0.1,
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
        for name, value in given.items():
            if not 0 <= value <= 1:
                raise UserError(f"augmentation.{name} is not a probability", value, "give a number from 0 to 1")
        least = (("magnitude", magnitude, 0), ("scale", scale, 0), ("gamma", gamma, 1), ("gain", gain, 0))
        for name, value, low in least:
            if value < low:
                raise UserError(f"augmentation.{name} is too small", value, f"give {low} or more")
        both: dict[str, Any] = {"keys": (IMAGE, LABEL), "mode": ("bilinear", "nearest"), "padding_mode": "reflection"}
        moves: dict[str, Any] = {
            "spacing": (32, 32),
            "magnitude_range": (0.0, magnitude),
            "scale_range": (scale, scale),
        }
        holes: dict[str, Any] = {"holes": 1, "max_holes": 4, "spatial_size": (12, 12), "max_spatial_size": (40, 40)}
        super().__init__(
            [
                Rand2DElasticd(prob=deform, rotate_range=(float(np.pi),), **moves, **both),
                ShiftedSectiond(prob=shifted),
                MissingSectiond(prob=missing),
                RandAdjustContrastd(IMAGE, prob=contrast, gamma=(1 / gamma, gamma)),
                RandScaleIntensityd(IMAGE, factors=gain, prob=contrast),
                RandShiftIntensityd(IMAGE, offsets=gain, prob=contrast),
                SectionContrastd(prob=sections, gain=gain),
                BlurredSectiond(prob=defocus),
                RandGaussianSmoothd(IMAGE, prob=blur, sigma_x=(0.5, 1.5), sigma_y=(0.5, 1.5)),
                RandGaussianNoised(IMAGE, prob=noise, std=0.3),
                RandCoarseDropoutd(IMAGE, prob=cutout, fill_value=(-1.0, 1.0), **holes),
                *extra,
            ]
        )
