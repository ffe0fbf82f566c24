"""Regions of arrays for the tests of sampling."""

import numpy as np

from mitoseg.datasets import Region
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume


class Guarded(ArrayVolume):
    """A volume that may be read inside some boxes only."""

    def __init__(self, array_zyx, *boxes):
        super().__init__(array_zyx)
        self.boxes = boxes

    def read(self, box=None):
        assert box is not None
        assert any(box.clip(allowed) == box for allowed in self.boxes)
        return super().read(box)


def region(image_zyx=None, label_zyx=None, start=(0, 0, 0), stop=None, name=""):
    """A region of a volume; what is not given of image and labels is 0."""
    shape = (label_zyx if image_zyx is None else image_zyx).shape
    given = (np.zeros(shape, np.uint8) if a is None else a for a in (image_zyx, label_zyx))
    image, label = (ArrayVolume(a) if isinstance(a, np.ndarray) else a for a in given)
    return Region(image, label, Box(start, stop or shape), name)
