"""What happens to single sections: they go missing, shift, blur, or have a contrast of their own.

Transforms of MONAI's dictionary kind on a stack ``image`` (S, Y, X), normalised; the labels stay as they are. Where
only the middle section is labelled (the channels of a network on slices), it neither goes missing nor shifts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.networks.layers.simplelayers import GaussianFilter
from monai.transforms.transform import MapTransform, RandomizableTransform
from torch import Tensor

IMAGE, LABEL = "image", "label"


class _OneSectiond(RandomizableTransform, MapTransform):
    """Does something to one section, chosen at random.

    Args:
        prob: Probability that it strikes a stack.
    """

    spares_labelled = False

    def __init__(self, prob: float = 0.1) -> None:
        MapTransform.__init__(self, [IMAGE])
        RandomizableTransform.__init__(self, prob)

    @abstractmethod
    def change(self, image_syx: Tensor, section: int) -> Tensor:
        """The section (Y, X) as it becomes."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the image of a sample."""
        sample = dict(data)
        self.randomize(None)
        image_syx, count = sample[IMAGE], len(sample[IMAGE])
        alone = len(sample[LABEL]) < count or count == 1  # the labelled section is the middle one
        choices = [s for s in range(count) if not (self.spares_labelled and alone and s == count // 2)]
        if not self._do_transform or not choices:
            return sample
        section = choices[int(self.R.randint(len(choices)))]
        changed = image_syx.clone()
        changed[section] = self.change(image_syx, section)
        sample[IMAGE] = changed
        return sample


class MissingSectiond(_OneSectiond):
    """A section is replaced by its neighbour, by one grey value, or by noise."""

    spares_labelled = True

    def change(self, image_syx: Tensor, section: int) -> Tensor:
        """See the class."""
        kind = int(self.R.randint(3))
        if kind == 0:
            return image_syx[section - 1 if section else 1]
        grey = float(self.R.uniform(-1.5, 1.5))
        if kind == 1:
            return torch.full_like(image_syx[section], grey)
        noise = torch.from_numpy(self.R.standard_normal(image_syx.shape[1:])).to(image_syx)
        return noise + grey


class ShiftedSectiond(_OneSectiond):
    """A section is shifted in y and x, by up to ``reach`` pixels; what leaves on one side comes in on the other."""

    spares_labelled = True

    def __init__(self, prob: float = 0.1, reach: int = 4) -> None:
        super().__init__(prob)
        self.reach = reach

    def change(self, image_syx: Tensor, section: int) -> Tensor:
        """See the class."""
        y, x = (int(n) for n in self.R.randint(-self.reach, self.reach + 1, size=2))
        return torch.roll(image_syx[section], (y, x), (0, 1))


class BlurredSectiond(_OneSectiond):
    """A section is out of focus: a Gaussian blur of up to ``sigma`` pixels."""

    def __init__(self, prob: float = 0.1, sigma: float = 3.0) -> None:
        super().__init__(prob)
        self.sigma = sigma

    def change(self, image_syx: Tensor, section: int) -> Tensor:
        """See the class."""
        blur = GaussianFilter(2, float(self.R.uniform(0.5, self.sigma))).to(image_syx.device)
        blurred: Tensor = blur(image_syx[section][None, None])[0, 0]
        return blurred


class SectionContrastd(RandomizableTransform, MapTransform):
    """Every section has a contrast and a brightness of its own.

    Args:
        prob: Probability that it strikes a stack.
        gain: Largest change of contrast, as a share, and of brightness, in standard deviations of the grey values.
    """

    def __init__(self, prob: float = 0.2, gain: float = 0.25) -> None:
        MapTransform.__init__(self, [IMAGE])
        RandomizableTransform.__init__(self, prob)
        self.gain = gain

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the image of a sample."""
        sample = dict(data)
        self.randomize(None)
        if self._do_transform:
            image_syx = sample[IMAGE]
            factor_s2 = torch.from_numpy(self.R.uniform(-self.gain, self.gain, (2, len(image_syx), 1, 1))).to(
                image_syx
            )
            sample[IMAGE] = image_syx * (1 + factor_s2[0]) + factor_s2[1]
        return sample
