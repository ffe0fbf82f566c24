"""What happens to single sections: they go missing, shift, blur, or have a contrast of their own.

Transforms of MONAI's dictionary kind on a stack ``image`` (S, Y, X), normalised; labels stay as they are, except those
of shifted sections. Where only the middle section is labelled (the channels of a network on slices), it neither goes
missing nor shifts.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.networks.layers.simplelayers import GaussianFilter
from monai.transforms.transform import MapTransform, RandomizableTransform
from torch import Tensor

IMAGE, LABEL = "image", "label"
"""Keys of a sample, for further transforms of MONAI's dictionary kind."""


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


class ShiftedSectiond(RandomizableTransform, MapTransform):
    """A section is shifted in y and x, or all from it outwards; the middle one stays.

    Where every section has a label, theirs move with them, to whole pixels. At the edge a section is reflected.

    Args:
        prob: Probability that it strikes a stack.
        reach: Largest shift along y and x, in pixels.
    """

    def __init__(self, prob: float = 0.1, reach: float = 4.0) -> None:
        MapTransform.__init__(self, [IMAGE, LABEL])
        RandomizableTransform.__init__(self, prob)
        self.reach = reach

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Shift sections of a sample."""
        sample = dict(data)
        self.randomize(None)
        count = len(sample[IMAGE])
        if not self._do_transform or count == 1:
            return sample
        first = last = int(self.R.choice([s for s in range(count) if s != count // 2]))
        if self.R.rand() < 0.5:
            first, last = (0, first) if first < count // 2 else (first, count - 1)
        y, x = self.R.uniform(-self.reach, self.reach, 2).tolist()
        for key in self.keys:
            if len(sample[key]) == count:
                changed = sample[key].clone()
                shift = (round(y), round(x)) if key == LABEL else (y, x)
                changed[first : last + 1] = shifted(changed[first : last + 1], shift)
                sample[key] = changed
        return sample


def shifted(stack_syx: Tensor, shift: tuple[float, float]) -> Tensor:
    """A stack moved along y and x, between pixels linearly, reflected at the edge."""
    for axis, distance in ((-2, shift[0]), (-1, shift[1])):
        length, whole = stack_syx.shape[axis], math.floor(distance)
        at = torch.arange(length, device=stack_syx.device) - whole
        near, far = (torch.minimum(i % (2 * length), 2 * length - 1 - i % (2 * length)) for i in (at, at - 1))
        moved = stack_syx.index_select(axis, near)
        between = distance != whole
        stack_syx = torch.lerp(moved, stack_syx.index_select(axis, far), distance - whole) if between else moved
    return stack_syx


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
