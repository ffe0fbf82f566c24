"""Which axis is which, and lengths in nm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_files import refused

from mitoseg.geometry import Box
from mitoseg.volumes.axes import Layout, grey, in_nm, resolve_axes, voxel_size_nm

PLAIN = [
    ((5, 6, 7), None, (5, 6, 7)), ((6, 7), None, (1, 6, 7)), ((3, 4), None, (1, 3, 4)), ((5, 6, 7), "?yx", (5, 6, 7)),
    ((5, 6, 7), "tyx", (5, 6, 7)), ((3, 6, 4), "zyx", (3, 6, 4)), ((7, 6, 5), "xyz", (5, 6, 7)),
    ((1, 5, 1, 6, 7, 1), "tzcyxs", (5, 6, 7)), ((5, 1, 1, 6, 7, 1), "tzcyxs", (5, 6, 7)),
    ((1, 1, 5, 6, 7, 1), "tz?yxs", (5, 6, 7)),  # how tifffile states a stack by default
    ((1, 1, 1, 6, 7, 1), "tzcyxs", (1, 6, 7)), ((6, 7, 3), "yxs", (1, 6, 7)), ((5, 6, 7, 3), "?yxs", (5, 6, 7)),
    ((5, 6, 7, 4), "zyxs", (5, 6, 7)), ((3, 3, 6, 4), "zsyx", (3, 6, 4)),
    ((5, 6, 7, 2), "zyxs", (5, 6, 7)),  # grey and alpha
    ((1, 5, 1, 6, 7, 3), "tzcyxs", (5, 6, 7)), ((1, 6, 7), "?yx", (1, 6, 7)), ((1, 6, 7), None, (1, 6, 7)),
    ((5, 1, 1), "zyx", (5, 1, 1)), ((1, 1, 1), None, (1, 1, 1)),
]  # fmt: skip
AMBIGUOUS = [
    ((3, 6, 7), None), ((6, 7, 4), None), ((3, 6, 7), "?yx"), ((3, 6, 7), "cyx"), ((5, 6, 7), "cyx"),
    ((1, 1, 5, 6, 7, 1), "tzcyxs"), ((6, 7, 2), "yx?"), ((5, 6, 7), "yx?"), ((6, 7, 3), "yxc"), ((3, 6, 7, 3), "?yxs"),
    ((5, 6, 7, 8), None), ((1, 5, 6, 7), None), ((2, 5, 6, 7), "czyx"), ((2, 5, 1, 6, 7, 1), "tzcyxs"), ((7,), None),
    ((), None),
]  # fmt: skip
MISFITS = [
    *(((5, 6, 7), axes, "cannot read the axes") for axes in ("", "zy", "zzyx", "abc", "zyxx", "zyxq", "zyx ", 7)),
    ((5, 6, 7), "czyx", r"axes=czyx does not fit a volume of shape \(5, 6, 7\)"),
    ((5, 6, 7, 8), "zyx", "does not fit"),
    ((2, 5, 6, 7), "czyx", r"axis c of shape .* holds 2 images"),
    ((5, 6, 7), "cyx", r"axis c of shape .* holds 5 images"),
    ((3, 5, 6, 7), "tzyx", r"axis t of shape .* holds 3 images"),
    *((shape, None, r"the volume is empty, its shape is \(") for shape in ((0, 6, 7), (5, 0, 7), (5, 6, 0), (0,))),
]


def test_what_needs_no_question_and_what_is_asked():
    for shape, stated, shape_zyx in PLAIN:
        assert resolve_axes("a", shape, stated).shape_zyx == shape_zyx, (shape, stated)
    for shape, stated in AMBIGUOUS:
        says = r"ambiguous: 'a'; say which axis is which, for example axes=zyx"
        refused(says, resolve_axes, "a", shape, stated)
    for shape, asked, says in MISFITS:
        refused(says, resolve_axes, "a", shape, None, asked)


@given(st.permutations("zyxc"), st.sampled_from([1, 3, 4]), st.data())
def test_boxes_of_any_order_with_colour(axes, channels, data):
    shape = {"z": 4, "y": 5, "x": 6, "c": channels}
    stored = np.random.default_rng(0).integers(0, 255, [shape[a] for a in axes])
    layout = resolve_axes("a", stored.shape, None, "".join(axes))
    image_zyxc = stored.transpose([axes.index(a) for a in "zyxc"])
    bounds = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in (4, 5, 6)]
    box = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
    assert layout.colour == (channels > 1)
    assert np.array_equal(layout.arrange(stored[layout.index(box)]), image_zyxc[..., :3].max(-1)[box.slices])


def test_singletons_may_be_left_out():
    assert resolve_axes("a", (1, 5, 1, 6, 7, 1), "tzcyxs", "zyx") == Layout((1, 5, 1, 6, 7, 1), "-z-yx-")
    assert resolve_axes("a", (1, 5, 6, 7), None, "zyx") == Layout((1, 5, 6, 7), "-zyx")
    assert resolve_axes("a", (6, 7), "yx", "zyx").shape_zyx == (1, 6, 7)
    assert resolve_axes("a", (1, 6, 7), "?yx", "yx") == Layout((1, 6, 7), "-yx")
    assert resolve_axes("a", (1, 1, 5, 6, 7, 3), "tzcyxs", "zyxc") == Layout((1, 1, 5, 6, 7, 3), "--zyxc")
    assert resolve_axes("a", (1, 5, 6, 7), None, "tzyx").shape_zyx == (5, 6, 7)


def test_grey_is_the_largest_of_red_green_and_blue():
    pixels = np.array([[7, 7, 7, 0], [0, 0, 9, 255], [1, 2, 0, 255]], np.uint16)[None]
    assert grey(pixels).tolist() == [[7, 9, 2]]
    assert grey(pixels[..., :3]).tolist() == [[7, 9, 2]]
    assert grey(pixels[..., :2]).tolist() == [[7, 0, 1]]
    assert grey(pixels[..., :1]).tolist() == [[7, 0, 1]]
    assert grey(pixels).dtype == np.uint16


LENGTHS = [
    *((5, "nm"), ("5", "nanometer"), (5e-6, "mm"), (5e-7, "cm"), (5e-9, "m")),
    *((0.005, unit) for unit in ("um", "\u00b5m", "\u03bcm", "\\u00B5m", "micron", " Micrometer ")),
    *((50, unit) for unit in ("angstrom", "\u00c5", "angstroms", "\u00c5ngstr\u00f6m", "\\u00C5", "\\u212B")),
]
NO_LENGTHS = [
    *((1, unit) for unit in ("", "pixel", "inch", None, "cm")),
    *((value, "nm") for value in (0.005, 0, -1, None, "x", float("nan"), float("inf"), [1])),  # 0.005 is in um
]


def test_lengths_in_nm():
    assert [in_nm(*length) for length in LENGTHS] == [pytest.approx(5)] * len(LENGTHS)
    assert in_nm(0.0046, "um") == pytest.approx(4.6)
    assert [in_nm(*length) for length in NO_LENGTHS] == [None] * len(NO_LENGTHS)
    assert voxel_size_nm([0.05, 0.004, 0.004], "um") == (50, 4, 4)
    assert voxel_size_nm([50, 0.004, 4], ["nm", "um", "nm"]) == (50, 4, 4)
    assert [voxel_size_nm(sizes) for sizes in ([50, None, 4], [50, 4], [])] == [None] * 3  # all must be known
