"""Regions of arrays for the tests of sampling."""

import numpy as np

from mitoseg.datasets import Region
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume


def region(image_zyx=None, label_zyx=None, start=(0, 0, 0), stop=None, name=""):
    """A region of a volume; what is not given of image and labels is 0."""
    shape = (label_zyx if image_zyx is None else image_zyx).shape
    image, label = (ArrayVolume(np.zeros(shape, np.uint8) if a is None else a) for a in (image_zyx, label_zyx))
    return Region(image, label, Box(start, stop or shape), name)
