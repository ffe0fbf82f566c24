import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitoseg.errors import UserError
from mitoseg.geometry import Box, anchor, reflect, slabs

SIZES = st.integers(1, 9)


@st.composite
def boxes_in(draw, shape):
    bounds = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))


@st.composite
def volumes_and_boxes(draw, count=1):
    shape = tuple(draw(st.lists(SIZES, min_size=3, max_size=3)))
    return shape, *(draw(boxes_in(shape)) for _ in range(count))


def encoded(shape):
    return np.arange(np.prod(shape)).reshape(shape)


@given(volumes_and_boxes())
def test_shape_size_and_slices_agree_with_numpy(case):
    shape, box = case
    part = encoded(shape)[box.slices]
    assert part.shape == box.shape
    assert part.size == box.size
    assert box.clip(Box.of_shape(shape)) == box


@given(volumes_and_boxes(), st.lists(st.integers(-9, 9), min_size=3, max_size=3))
def test_a_shift_there_and_back_is_nothing(case, offset):
    _, box = case
    moved = box.shift(offset)
    assert moved.shape == box.shape
    assert moved.shift([-o for o in offset]) == box


@given(volumes_and_boxes(), st.integers(0, 5), st.lists(st.integers(0, 5), min_size=3, max_size=3))
def test_growing_adds_on_both_sides(case, margin, margins):
    _, box = case
    assert box.grow(margin).shape == tuple(n + 2 * margin for n in box.shape)
    assert box.grow(margins).inside(box).start == tuple(-m for m in margins)
    assert box.grow(margin).clip(box) == box


@given(volumes_and_boxes(count=2))
def test_clip_is_the_voxels_that_both_hold(case):
    shape, one, other = case
    both = np.intersect1d(encoded(shape)[one.slices], encoded(shape)[other.slices])
    clipped = one.clip(other)
    assert np.array_equal(np.sort(encoded(shape)[clipped.slices].ravel()), both)
    assert (clipped.size == 0) == (both.size == 0)


@given(volumes_and_boxes(count=2))
def test_inside_indexes_the_others_own_array(case):
    shape, one, other = case
    clipped = one.clip(other)
    if clipped.size:
        part = encoded(shape)[other.slices]
        assert np.array_equal(part[clipped.inside(other).slices], encoded(shape)[clipped.slices])


@given(volumes_and_boxes())
def test_text_there_and_back(case):
    shape, box = case
    if box.size:
        assert Box.parse(str(box), shape) == box
        assert Box.parse(str(box).strip("[]").split(","), shape) == box
    else:
        with pytest.raises(UserError, match="empty or leaves"):
            Box.parse(str(box), shape)


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("[0:82,64:768,0:1024]", (0, 64, 0), (82, 768, 1024)),
        ("[:,64:,:100]", (0, 64, 0), (82, 768, 100)),
        (["0:82", "64:768", "0:1024"], (0, 64, 0), (82, 768, 1024)),
        ("['0:82', '64:768', '0:1024']", (0, 64, 0), (82, 768, 1024)),
    ],
)
def test_parse_reads_what_users_write(text, start, stop):
    assert Box.parse(text, (82, 768, 1024)) == Box(start, stop)


def test_parse_refuses_what_it_cannot_read_and_boxes_that_are_empty_or_leave():
    for text in ("", "0:82", "[0:82,0:768]", "[a:b,0:1,0:1]", "[0:1,-1:5,0:1]", 7, None, "[0:1:2,0:1,0:1]"):
        with pytest.raises(UserError, match=r"cannot read the box.*\[0:82,0:768,0:1024\]"):
            Box.parse(text, (82, 768, 1024))
    for text in ("[0:83,0:1,0:1]", "[5:5,0:1,0:1]", "[6:5,0:1,0:1]", "[82:,0:1,0:1]"):
        with pytest.raises(UserError, match="empty or leaves"):
            Box.parse(text, (82, 768, 1024))
    for start, stop in (((0, 0), (1,)), ((2,), (1,))):
        with pytest.raises(UserError, match="not a box"):
            Box(start, stop)


@given(volumes_and_boxes(), st.integers(1, 12))
def test_slabs_cover_once_in_order(case, depth):
    shape, box = case
    seen = np.zeros(shape, int)
    parts = list(slabs(box, depth))
    for part in parts:
        seen[part.slices] += 1
        assert 1 <= part.shape[0] <= depth
    assert (seen[box.slices] == 1).all()
    assert seen.sum() == box.size
    assert all(a.stop[0] == b.start[0] for a, b in itertools.pairwise(parts))


def test_the_pixel_that_a_window_answers():
    assert [anchor(window) for window in (32, 67, 1)] == [16, 33, 0]


@given(st.integers(1, 9), st.integers(0, 40))
def test_reflect_is_numpys(size, margin):
    expected = np.pad(np.arange(size), margin, mode="reflect") if size > 1 else np.zeros(1 + 2 * margin, int)
    assert np.array_equal(reflect(np.arange(-margin, size + margin), size), expected)
