"""Turning there and back."""

import itertools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference.views import SYMMETRIES, TurnedVolume, check_cubic, symmetries
from mitoseg.volumes import ArrayVolume

COUNTS = {"none": 1, "flips": 4, "turns": 8, "all": 16, "axes": 3, "cube": 48}


@pytest.mark.parametrize("name", SYMMETRIES)
def test_each_symmetry_is_another_one(name):
    image = np.arange(60).reshape(3, 4, 5)
    turned = {(symmetry.shape(image.shape), symmetry.turn_array(image).tobytes()) for symmetry in symmetries(name)}
    assert len(turned) == COUNTS[name]
    with pytest.raises(UserError, match="no such test-time augmentation"):
        symmetries(name + "s")


@pytest.mark.parametrize("name", [name for name in SYMMETRIES if name != "cube"])
def test_one_after_the_other_is_a_third(name):
    """So the result of a turned volume is the turned result."""
    image = np.arange(27).reshape(3, 3, 3)
    single = {symmetry.turn_array(image).tobytes() for symmetry in symmetries(name)}
    pairs = itertools.product(symmetries(name), repeat=2)
    assert {a.turn_array(b.turn_array(image)).tobytes() for a, b in pairs} == single


def test_the_cube_has_all_that_numpy_can_do():
    image = np.arange(60).reshape(3, 4, 5)
    expected = {
        (turned.shape, turned.tobytes())
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
        for turned in [np.ascontiguousarray(image.transpose(order)[tuple(slice(None, None, s) for s in signs)])]
    }
    assert {(t.shape, t.tobytes()) for t in (s.turn_array(image) for s in symmetries("cube"))} == expected


@given(st.sampled_from(SYMMETRIES["cube"]), st.data())
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


@pytest.mark.parametrize("name", ["axes", "cube"])
def test_axes_change_places_with_z_where_voxels_are_cubic(name, caplog):
    check_cubic(name, (5.0, 5.0, 5.0))
    check_cubic(name, (5.2, 5.0, 5.0))
    assert not caplog.records
    with pytest.raises(UserError, match=r"needs cubic voxels.*\(50\.0, 5\.0, 5\.0\); use tta=turns or tta=all"):
        check_cubic(name, (50.0, 5.0, 5.0))
    with caplog.at_level(logging.WARNING):
        check_cubic(name, None)
    assert "takes the voxels as cubic" in caplog.text
    for other in ("none", "flips", "turns", "all"):
        check_cubic(other, (50.0, 5.0, 5.0))
        check_cubic(other, None)
