"""Boxes at any halving are those of the whole volume, halved by numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_volumes import places, save

from mitoseg.geometry import Box
from mitoseg.viewers.neuroglancer.scene import Level, Levels, open_levels, sample
from mitoseg.volumes import ArrayVolume, open_volume
from mitoseg.volumes.base import CroppedVolume

SHAPE = (7, 9, 10)


def mean_oracle(values, factors):
    """Means of blocks in one go; a block that is cut by one voxel counts its last one twice."""
    padded = np.pad(values.astype(float), [(0, -n % f) for n, f in zip(values.shape, factors, strict=True)], "edge")
    z, y, x = (n // f for n, f in zip(padded.shape, factors, strict=True))
    blocks = padded.reshape(z, factors[0], y, factors[1], x, factors[2])
    return blocks.mean(axis=(1, 3, 5))


@given(st.data())
def test_any_box_at_any_halving(data):
    values = places(SHAPE, np.float32)
    factors = tuple(data.draw(st.sampled_from([1, 2])) for _ in SHAPE)
    whole = mean_oracle(values, factors)
    start = [data.draw(st.integers(0, n - 1)) for n in whole.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, whole.shape, strict=True)]
    box = Box(tuple(start), tuple(stop))
    levels = Levels([Level((1, 1, 1), ArrayVolume(values))], labels=False)
    np.testing.assert_allclose(levels.read(box, factors), whole[box.slices])


def test_labels_are_not_averaged():
    values = places(SHAPE, np.uint32)
    levels = Levels([Level((1, 1, 1), ArrayVolume(values))], labels=True)
    found = levels.read(Box((0, 1, 0), (2, 3, 3)), (4, 2, 4))
    np.testing.assert_array_equal(found, values[::4, ::2, ::4][0:2, 1:3, 0:3])


def test_the_coarsest_level_that_fits_is_read():
    marked = [Level((f, f, f), ArrayVolume(np.full([-(-n // f) for n in SHAPE], f, np.uint8))) for f in (1, 2, 4)]
    levels = Levels(marked, labels=False)
    for factors, expected in [((1, 1, 1), 1), ((2, 1, 2), 1), ((2, 2, 2), 2), ((2, 4, 4), 2), ((8, 4, 4), 4)]:
        stop = tuple(-(-n // f) for n, f in zip(SHAPE, factors, strict=True))
        found = levels.read(Box((0, 0, 0), stop), factors)
        assert found.shape == stop
        assert (found == expected).all()
    assert levels.coarsest == (4, 4, 4)


@pytest.mark.parametrize(
    ("box", "factors"), [(((0, 0, 0), (8, 9, 10)), (1, 1, 1)), (((0, 0, 0), (1, 1, 1)), (3, 1, 1))]
)
def test_what_cannot_be_read_is_refused(box, factors):
    levels = Levels([Level((1, 1, 1), ArrayVolume(places(SHAPE)))], labels=False)
    with pytest.raises(ValueError, match="no box"):
        levels.read(Box(*box), factors)


def test_levels_of_an_ome_zarr_image(tmp_path):
    values = np.random.default_rng(1).integers(0, 200, (20, 300, 610), np.uint8)
    volume = open_volume(save(tmp_path / "a.ome.zarr", values, voxel_size=(5.0, 5.0, 5.0)))
    found = open_levels(volume)
    assert [level.factors for level in found] == [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
    box = Box((0, 20, 30), (5, 75, 152))
    stored = Levels(found, labels=False).read(box, (4, 4, 4)).astype(float)
    np.testing.assert_allclose(stored, mean_oracle(values, (4, 4, 4))[box.slices], atol=1.01)  # rounded level by level
    assert len(open_levels(open_volume(str(tmp_path / "a.ome.zarr" / "1")))) == 1
    assert len(open_levels(CroppedVolume(volume, Box((1, 0, 0), (20, 300, 610))))) == 1


def test_a_sample_comes_from_the_middle():
    values = places((9, 8, 10))
    np.testing.assert_array_equal(sample(ArrayVolume(values), slices=3, side=2), values[[2, 4, 6], 3:5, 4:6])
    assert sample(ArrayVolume(values[:1])).shape == (1, 8, 10)
