"""Slices that are missing or there twice, by the numbers in the names of their files."""

import logging

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from mitoseg.errors import UserError
from mitoseg.volumes import open_volume
from mitoseg.volumes.images import find_gap
from mitoseg.volumes.opening import warn_of_gaps

FINE = {
    "one after the other": ["slice_001.tif", "slice_002.tif", "slice_003.tif"],
    "every fifth": ["z0000.png", "z0005.png", "z0010.png"],
    "from any number": ["47.png", "48.png"],
    "one": ["1.png"],
    "none has a number": ["a.png", "c.png", "d.png"],
    "a number that stands still": ["s3_1.tif", "s3_2.tif", "s3_3.tif"],
    "the place in the name": [f"Slice_{i:05d}_z={i / 200:.4f}um.tif" for i in range(30)],
    "a grid of two numbers": [f"s{i}_t{j}.tif" for i in range(3) for j in range(2)],
    "times of day": ["em_120301_001.tif", "em_120507_002.tif", "em_121142_003.tif"],
    "times of day alone, of two numbers": ["1203_01.tif", "1205_07.tif", "1211_42.tif"],
    "times of day with seconds": ["20261105_120000.tif", "20261105_120130.tif", "20261105_120301.tif"],
    "all differ": ["a1.png", "b7.png", "c3.png", "d.png"],
}
GAPS = {
    "one": (
        ["s1.tif", "s2.tif", "s4.tif"],
        "1 slice is missing by the numbers of the files, between s2.tif and s4.tif",
    ),
    "some": (
        [f"s_{i}.png" for i in (0, 5, 10, 25, 30, 40)],
        "3 slices are missing by the numbers of the files, first between s_10.png and s_25.png",
    ),
    "uneven": (["0.png", "2.png", "5.png", "7.png"], "the numbers of the slices jump once, between 2.png and 5.png"),
    "of two numbers": (
        [f"Slice_{i:05d}_z={i / 200:.4f}um.tif" for i in range(30) if i != 7],
        "1 slice is missing by the numbers of the files, between Slice_00006_z=0.0300um.tif and Slice_00008",
    ),
    "twice": (
        ["a_01.png", "a_1.png", "a_02.png"],
        "slice 1 is there twice by the numbers of the files, as a_01.png and",
    ),
    "a copy": (
        ["s 001 - Copy.tif", "s 001.tif", "s 002.tif", "s 003.tif"],
        "slice 1 is there twice by the numbers of the files, as s 001 - Copy.tif and s 001.tif",
    ),
    "labels among images": (
        [f"{kind}_{i}.tif" for kind in ("em", "mito") for i in range(5)],
        "slice 0 is there twice by the numbers of the files, as em_0.tif and mito_0.tif, and 4 more",
    ),
}


@pytest.mark.parametrize("case", FINE)
def test_nothing_is_missing(case):
    assert find_gap(FINE[case]) is None


@pytest.mark.parametrize("case", GAPS)
def test_what_is_missing(case):
    names, told = GAPS[case]
    assert find_gap(names).startswith(told)


@given(first=st.integers(0, 999), step=st.integers(1, 7), count=st.integers(4, 40), data=st.data())
def test_what_is_taken_out_is_counted(first, step, count, data):
    numbers = [first + i * step for i in range(count)]
    assert find_gap([f"em12_{i:03d}.tif" for i in numbers]) is None
    gone = data.draw(st.sets(st.sampled_from(numbers[2:-1]), min_size=1))  # the first two tell the step
    told = find_gap([f"em12_{i:03d}.tif" for i in numbers if i not in gone])
    assert told.split()[0] == str(len(gone))


@given(st.lists(st.text("ab01_ ²", min_size=1, max_size=6), max_size=8))
def test_any_names_can_be_looked_at(names):
    find_gap(names)


def test_a_folder_says_so(tmp_path, caplog):
    for i in (1, 2, 4):
        tifffile.imwrite(tmp_path / f"slice_{i:03d}.tif", np.zeros((4, 5), np.uint8))
    volume = open_volume(tmp_path)
    assert volume.shape == (3, 4, 5)
    with pytest.raises(UserError, match=r"1 slice is missing .*'.*'; mend the folder, or give missing_slices=ignore"):
        volume.check_complete()
    with caplog.at_level(logging.WARNING):
        warn_of_gaps(volume)
    assert caplog.messages == [f"{tmp_path}: {volume.find_gaps().what}"]
    tifffile.imwrite(tmp_path / "slice_003.tif", np.zeros((4, 5), np.uint8))
    open_volume(tmp_path).check_complete()
