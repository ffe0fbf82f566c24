"""Where the picture looks, and what it refuses."""

import numpy as np
import pytest

from mitoseg.benchmark.report import choose_box, picture_box
from mitoseg.datasets import Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume


@pytest.mark.parametrize("size", [(5, 7), (8, 4), (1, 1), (20, 24), (99, 3)])
def test_the_place_holds_most_mitochondria(size):
    label_zyx = (np.random.default_rng(0).random((9, 20, 24)) < 0.2).astype(np.uint8)
    label_zyx[4, 3:12, 11:20] |= np.random.default_rng(1).integers(0, 2, (9, 9), np.uint8)
    label_zyx[8, :4] = 255
    height, width = min(size[0], 20), min(size[1], 24)
    box = choose_box(label_zyx, size)
    assert box.shape == (1, height, width)
    best = max(
        (label_zyx[z, y : y + height, x : x + width] == 1).sum()
        for z in range(0, 9, 4)
        for y in range(20 - height + 1)
        for x in range(24 - width + 1)
    )
    assert (label_zyx[box.slices] == 1).sum() == best


def region():
    volume = ArrayVolume(np.zeros((4, 10, 10), np.uint8))
    return Region(volume, volume, Box((1, 0, 0), (4, 10, 10)))


def test_a_given_place():
    assert str(picture_box(region(), None, ["2:3", "0:5", "5:"])) == "[2:3,0:5,5:10]"


@pytest.mark.parametrize(
    ("size", "box", "line"),
    [
        ([5], None, "no size"),
        ([0, 5], None, "no size"),
        ("big", None, "no size"),
        (None, ["0:2", "0:5", "0:5"], "one slice"),
        (None, ["3:4", "0:5", "0:5"], "leaves the volume"),
    ],
)
def test_no_such_place(size, box, line):
    with pytest.raises(UserError, match=line):
        picture_box(region(), size, box)
