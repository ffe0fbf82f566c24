"""A volume on another grid: the same place, the same light, whatever the box."""

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_files import refused
from scipy import ndimage
from skimage.measure import block_reduce

from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume, resampling
from mitoseg.volumes.base import encoded_volume
from mitoseg.volumes.resampling import MOST, axis_weights, resampled, resampled_length

RATIOS = st.one_of(st.sampled_from([0.5, 1.0, 1.25, 1.5, 2.0, 3.0]), st.floats(0.15, 6))


def blob(shape, voxel, centre_nm, sigma_nm):
    """A Gaussian ball, the centre in nm from the volume's outer corner."""
    axes = [(np.arange(n) + 0.5) * v - c for n, v, c in zip(shape, voxel, centre_nm, strict=True)]
    z, y, x = np.ix_(*[np.exp(-((a / sigma_nm) ** 2) / 2) for a in axes])
    return (z * y * x).astype(np.float32)


def centre_of(volume):
    """Centre of mass in nm from the outer corner."""
    places = np.array(ndimage.center_of_mass(volume.read().astype(float)))
    return (places + 0.5) * volume.voxel_size


@settings(max_examples=50, deadline=None)
@given(image=hnp.arrays(np.uint8, (5, 11, 13)), ratios=st.tuples(RATIOS, RATIOS, RATIOS), data=st.data())
def test_a_box_is_that_part_of_the_whole(image, ratios, data):
    volume = resampled(ArrayVolume(image, (1, 1, 1)), ratios)
    stops = [data.draw(st.integers(1, n)) for n in volume.shape]
    box = Box(tuple(data.draw(st.integers(0, b - 1)) for b in stops), tuple(stops))
    part = volume.read(box)
    assert part.shape == box.shape
    np.testing.assert_array_equal(part, volume.read()[box.slices])


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 40), ratio=RATIOS)
def test_weights_are_shares(n, ratio):
    length = resampled_length(n, ratio)
    assert length == max(1, round(n / ratio)) or abs(n / ratio % 1 - 0.5) < 1e-5
    first, matrix = axis_weights(0, length, ratio, n)
    weights = matrix.toarray()
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    inside = first + weights @ np.arange(weights.shape[1])
    wanted = (np.arange(length) + 0.5) * ratio - 0.5  # the centre of mass of the weights is the new centre
    whole = (np.arange(length) * ratio >= 0.5) & ((np.arange(length) + 1) * ratio <= n - 0.5)
    off = (
        1e-3 if ratio <= 1 or ratio == int(ratio) else 1 / (8 * ratio) + 1e-3
    )  # parts of voxels count at their centres
    np.testing.assert_allclose(inside[whole], wanted[whole], atol=off)


@pytest.mark.parametrize("steps", [(2, 2, 2), (1, 2, 2), (3, 1, 4)])
def test_whole_factors_are_binning(steps):
    image = np.random.default_rng(0).integers(0, 255, (6, 12, 24), np.uint8)
    found = resampled(ArrayVolume(image, (50, 5, 5)), [v * s for v, s in zip((50, 5, 5), steps, strict=True)])
    np.testing.assert_allclose(found.read(), block_reduce(image, steps, np.mean), rtol=1e-6)


@pytest.mark.parametrize("size", [(10, 10, 10), (20, 20, 20), (31, 14, 23.7), (50, 10, 10), (3.3, 5, 7)])
def test_a_point_keeps_its_place(size):
    shape, voxel, centre = (40, 60, 64), (10, 10, 10), (193.0, 287.0, 331.0)
    volume = ArrayVolume(blob(shape, voxel, centre, 45), voxel)
    found = resampled(volume, size)
    assert found.shape == tuple(resampled_length(n, s / 10) for n, s in zip(shape, size, strict=True))
    np.testing.assert_allclose(centre_of(found), centre, atol=0.05)
    back = resampled(found, voxel, shape)
    assert back.shape == shape
    np.testing.assert_allclose(centre_of(back), centre, atol=0.3)


@pytest.mark.parametrize("ratio", [0.5, 2.0, 1.6])
def test_an_edge_keeps_its_place(ratio):
    image = np.zeros((1, 1, 40), np.float32)
    image[..., 17:] = 1
    found = resampled(ArrayVolume(image, (1, 1, 1)), (1, 1, ratio)).read()
    from_the_right = found.sum() * ratio
    assert from_the_right == pytest.approx(40 - 17, abs=0.01)
    crossing = np.interp(0.5, found.ravel(), (np.arange(found.size) + 0.5) * ratio)
    assert crossing == pytest.approx(17, abs=ratio / 2 if ratio > 1 else 0.01)


def test_there_and_back_is_nearly_the_same():
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((30, 40, 50)), 4).astype(np.float32)
    volume = ArrayVolume(smooth, (6, 6, 6))
    assert resampled(volume, (6, 6, 6)) is volume
    for size in ((10, 10, 10), (5, 5, 5), (7, 9, 6)):
        back = resampled(resampled(volume, size), (6, 6, 6), volume.shape).read()
        assert np.abs(back - smooth)[3:-3, 3:-3, 3:-3].max() < 0.05 * np.ptp(smooth)


def test_stripes_do_not_alias_and_a_constant_stays_one_up_to_the_rim():
    stripes = np.tile(np.array([0, 255], np.uint8), 60).reshape(1, 1, -1)
    found = resampled(ArrayVolume(stripes, (1, 1, 1)), (1, 1, 4.1)).read()
    assert np.abs(found - 127.5).max() < 0.1 * 255
    volume = ArrayVolume(np.full((5, 7, 9), 200, np.uint8), (5, 5, 5))
    for size in ((7, 3, 11), (2, 2, 2), (12, 12, 12)):
        np.testing.assert_allclose(resampled(volume, size).read(), 200, rtol=1e-6)


def test_what_cannot_be_resampled():
    flat = np.zeros((1, 1, 1))
    refused("no voxel size to resample by", resampled, ArrayVolume(flat), (5, 5, 5))
    refused(f"more than {MOST:g} times", resampled, ArrayVolume(flat, (5, 5, 5)), (5, 5, 5000))
    refused("cannot read the voxel size", resampled, ArrayVolume(flat, (5, 5, 5)), (5, 5))


def test_it_travels_and_reads_only_what_it_needs(monkeypatch):
    volume = ArrayVolume(np.arange(1000, dtype=np.uint16).reshape(10, 10, 10), (5, 5, 5))
    seen = []
    read = volume.read
    monkeypatch.setattr(volume, "read", lambda box: seen.append(box) or read(box))
    found = resampled(volume, (10, 10, 2.5))
    found.read(Box((1, 2, 4), (2, 4, 8)))
    assert [str(box) for box in seen] == ["[2:4,4:8,1:5]"]
    monkeypatch.undo()
    assert np.array_equal(pickle.loads(pickle.dumps(found)).read(), found.read())


def test_a_mask_is_made_of_probabilities():
    for scale in (1, 255):
        image = (np.array([[[0.2, 0.5, 0.7]]]) * scale).astype(np.float32)
        volume = ArrayVolume(image, (5, 5, 5))
        mask = encoded_volume(volume, np.dtype("uint8"), {"kind": "mask", "threshold": 0.5, "scale": 1}, scale)
        assert mask.read().tolist() == [[[0, 1, 1]]]
        assert mask.dtype == np.uint8
        whole = encoded_volume(volume, np.dtype("uint8"), {"kind": "probability", "scale": scale})
        assert whole.read().tolist() == np.rint(image).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("size", [(10, 10, 10), (20, 20, 20), (2.5, 2.5, 2.5), (5, 7, 50)])
def test_a_box_takes_the_memory_that_is_told(monkeypatch, dtype, size):
    """However many voxels it is made of: they are read in parts."""
    monkeypatch.setattr(resampling, "READ_BYTES", 2**19)
    monkeypatch.setattr(resampling, "PIECE", 2**16)
    monkeypatch.setattr(resampling, "PIECE_BYTES", 12 * 2**16)
    volume = resampled(Copied(np.random.default_rng(0).integers(0, 255, (64, 128, 128)).astype(dtype)), size)
    box = Box((0, 0, 0), tuple(min(n, 96) for n in volume.shape))
    told = volume.scratch_bytes(box)
    assert told < 1.1 * (2**19 + 12 * 2**16)
    tracemalloc.start()
    found = volume.read(box)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - found.nbytes < 1.1 * told + 10**5
    monkeypatch.undo()
    np.testing.assert_array_equal(found, volume.read(box))  # the parts do not show


class Copied(ArrayVolume):
    """Reads into memory of its own, as from a file."""

    def __init__(self, image_zyx):
        super().__init__(image_zyx, (5, 5, 5))

    def read(self, box=None):
        return super().read(box).copy()
