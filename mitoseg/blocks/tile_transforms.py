"""What augmentation needs beside MONAI's transforms: a view of a stack as a volume, and noise made on the device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms.transform import MapTransform, Randomizable, RandomizableTransform

from mitoseg.blocks.sections import IMAGE, LABEL


class AsVolumed(Randomizable):
    """Show a stack with a label for each section to a transform as a volume: (1, Z, Y, X) in place of (S, Y, X).

    Other stacks are shown as they are, as an image (C, Y, X) of several channels.

    Args:
        transform: One of MONAI's dictionary kind that takes volumes.
    """

    def __init__(self, transform: Callable[[Any], Mapping[Any, Any]]) -> None:
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> AsVolumed:
        """Pass it on."""
        inner: object = self.transform
        if isinstance(inner, Randomizable):
            inner.set_random_state(seed, state)
        return self

    def randomize(self, data: Any) -> None:  # noqa: ANN401 (MONAI's own)
        """Nothing is random here but what the transform does."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The changed sample, stacks again."""
        deep = len(data[LABEL]) == len(data[IMAGE]) > 1
        if not deep:
            return dict(self.transform(dict(data)))
        changed = self.transform({key: data[key][None] for key in (IMAGE, LABEL)})
        return {**data, **{key: changed[key][0] for key in (IMAGE, LABEL)}}


class GaussianNoised(RandomizableTransform, MapTransform):
    """Gaussian noise, drawn where the tile lies; MONAI's is drawn on the host, which takes five times as long.

    Args:
        prob: Probability that it strikes a stack.
        std: Largest standard deviation, in those of the grey values.
    """

    def __init__(self, prob: float = 0.1, std: float = 0.3) -> None:
        MapTransform.__init__(self, [IMAGE])
        RandomizableTransform.__init__(self, prob)
        self.std = std

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the image of a sample."""
        sample = dict(data)
        self.randomize(None)
        if self._do_transform:
            image_syx = sample[IMAGE]
            generator = torch.Generator(image_syx.device).manual_seed(int(self.R.randint(2**31)))
            noise = torch.randn(image_syx.shape, generator=generator, device=image_syx.device)
            sample[IMAGE] = image_syx + float(self.R.uniform(0, self.std)) * noise
        return sample
