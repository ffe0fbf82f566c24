"""Turning there and back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference.symmetry import SYMMETRIES, TurnedVolume, symmetries
from mitoseg.volumes import ArrayVolume

ALL = SYMMETRIES["all"]


@pytest.mark.parametrize(("name", "count"), [("none", 1), ("flips", 4), ("turns", 8), ("all", 16)])
def test_each_symmetry_is_another_one(name, count):
    image = np.arange(60).reshape(3, 4, 5)
    turned = {symmetry.turn_array(image).tobytes() for symmetry in symmetries(name)}
    assert len(turned) == count
    with pytest.raises(UserError, match="no such test-time augmentation"):
        symmetries(name + "s")


@given(st.sampled_from(ALL), st.data())
def test_a_box_of_the_turned_volume_is_the_turned_box(symmetry, data):
    shape = (4, 5, 7)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    box, image = Box(start, stop), np.arange(4 * 5 * 7).reshape(shape)
    turned = symmetry.turn(box, shape)
    assert symmetry.turn_back(turned, shape) == box
    read = TurnedVolume(ArrayVolume(image), symmetry).read(turned)
    np.testing.assert_array_equal(read, symmetry.turn_array(image)[turned.slices])
    back = symmetry.turn_tensor_back(torch.from_numpy(read))
    np.testing.assert_array_equal(back.numpy(), image[box.slices])
