import numpy as np
import pytest
from scipy import ndimage

from mitoseg.classical.features import (
    VoxelFeatures,
    as_volume,
    even_blocks,
    gaussian,
    grey_range,
    read_with_halo,
    scaled,
    symmetric_eigenvalues,
)
from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import ArrayVolume

PLACES = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]


def matrices(parts):
    """(N, 3, 3) of the six arrays."""
    full = np.empty((len(parts[0]), 3, 3))
    for part, (i, j) in zip(parts, PLACES, strict=True):
        full[:, i, j] = full[:, j, i] = part
    return full


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_eigenvalues_are_those_of_lapack(scale):
    parts = list(np.random.default_rng(0).standard_normal((6, 500)).astype(np.float32) * np.float32(scale))
    expected = np.linalg.eigvalsh(matrices(parts))[:, ::-1]
    np.testing.assert_allclose(np.stack(symmetric_eigenvalues(parts), 1), expected, atol=1e-4 * scale)


@pytest.mark.parametrize("diagonal", [(0, 0, 0), (7, 7, 7), (3, 3, -1), (5, -2, -2), (1, 0, 0)])
def test_eigenvalues_that_coincide(diagonal):
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    matrix = turn @ np.diag(diagonal) @ turn.T
    found = symmetric_eigenvalues([np.full(1, matrix[i, j], np.float32) for i, j in PLACES])
    np.testing.assert_allclose(np.concatenate(found), diagonal, atol=0.01)


def random_image(shape=(9, 20, 17)):
    return np.random.default_rng(2).integers(0, 255, shape).astype(np.uint8)


@pytest.mark.parametrize("voxel_size", [(5.0, 5.0, 5.0), (30.0, 6.0, 6.0)])
def test_a_gaussian_is_that_of_scipy(voxel_size):
    image = np.pad(random_image().astype(np.float32), 9, mode="edge")
    sigma = [12.0 / v for v in voxel_size]
    used = [s if s >= 0.5 else 0 for s in sigma]
    expected = ndimage.gaussian_filter(image, used, radius=[int(np.ceil(3 * s)) if s else 0 for s in used])
    found = gaussian(image, sigma)
    margins = [(a - b) // 2 for a, b in zip(image.shape, found.shape, strict=True)]
    inner = tuple(slice(m, n - m) for m, n in zip(margins, image.shape, strict=True))
    np.testing.assert_allclose(found, expected[inner], rtol=1e-5)


def quadratic(voxel_size, shape=(25, 25, 25)):
    """An image whose derivatives are known, and its matrix of second derivatives."""
    z, y, x = (c * v for c, v in zip(np.indices(shape) - 12, voxel_size, strict=True))
    second = np.array([[2.0, 0.5, -1.0], [0.5, -3.0, 0.25], [-1.0, 0.25, 1.0]]) * 1e-2
    place = np.stack([z, y, x], -1)
    return 0.5 * np.einsum("...i,ij,...j", place, second, place) + 0.3 * x, second


@pytest.mark.parametrize("voxel_size", [(5.0, 5.0, 5.0), (20.0, 5.0, 5.0)])
def test_derivatives_of_a_quadratic_are_its_own(voxel_size):
    image, second = quadratic(voxel_size)
    features = VoxelFeatures((10.0,), voxel_size)
    found = dict(zip(features.names, features(image)[:, 12, 12, 12], strict=True))
    eigenvalues = np.linalg.eigvalsh(second)[::-1] * 100
    assert [found[f"hessian{i} 10 nm"] for i in range(3)] == pytest.approx(eigenvalues, abs=0.01)
    assert found["laplacian 10 nm"] == pytest.approx(eigenvalues.sum(), abs=0.01)
    assert found["gradient 10 nm"] == pytest.approx(0.3 * 10, rel=1e-3)


def test_turned_tissue_has_the_same_features():
    features = VoxelFeatures((5.0, 10.0))
    image = random_image((11, 11, 11))
    turned = features(image.transpose(2, 0, 1)[:, ::-1])
    back = turned[:, :, ::-1].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(back, features(image), rtol=1e-3, atol=0.05)


def test_a_part_has_the_features_of_the_whole():
    features = VoxelFeatures((5.0, 12.0), (20.0, 5.0, 5.0))
    whole = features(random_image())
    padded = np.pad(random_image(), [(h, h) for h in features.halo], mode="edge")
    z, y, x = features.halo
    part = features.inside(padded[3 : 5 + 2 * z, 4 : 11 + 2 * y, 2 : 9 + 2 * x], threads=2)
    np.testing.assert_array_equal(part, whole[:, 3:5, 4:11, 2:9])


def test_the_halo_is_as_large_as_it_must_be():
    features = VoxelFeatures((5.0, 10.0), (30.0, 5.0, 5.0))
    z, y, x = features.halo
    image = np.zeros([2 * h + 1 for h in features.halo], np.float32)
    for axis in range(3):
        corner = [z, y, x]
        corner[axis] = 0
        touched = image.copy()
        touched[tuple(corner)] = 1e6
        assert np.any(features.inside(touched) != features.inside(image))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *((((),), "scales"), (((5.0, -1.0),), "scales")),
        *((((5.0,), (5.0, 5.0)), "voxel size"), (((5.0,), (0, 5, 5)), "voxel size")),
    ],
)
def test_wrong_lengths_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        VoxelFeatures(*arguments)
    with pytest.raises(UserError, match="halo"):
        VoxelFeatures((10.0,)).inside(np.zeros((7, 30, 30)))


def test_slabs_are_the_whole():
    image, features = random_image((7, 12, 11)), VoxelFeatures((4.0,), (20.0, 5.0, 5.0))
    whole = features(image)
    for slab in slabs(Box.of_shape(image.shape), 3):
        found = features.inside(read_with_halo(as_volume(image), slab, features.halo), threads=2)
        np.testing.assert_array_equal(found, whole[(slice(None), *slab.slices)])


def test_beyond_the_volume_its_border_is_repeated():
    image = random_image((7, 12, 11))
    found = read_with_halo(as_volume(image), Box((0, 3, 0), (2, 5, 11)), (9, 4, 2))
    padded = np.pad(image, ((9, 9), (4, 4), (2, 2)), mode="edge")
    np.testing.assert_array_equal(found, padded[0:20, 3:13, :])


def test_what_is_no_volume_is_refused():
    with pytest.raises(UserError, match="no volume"):
        as_volume(np.zeros((3, 4)))
    with pytest.raises(UserError, match="NaN"):
        read_with_halo(as_volume(np.full((3, 4, 5), np.nan)), Box((0, 0, 0), (1, 1, 1)), (1, 1, 1))


@pytest.mark.parametrize("shape", [(5, 7, 9), (20, 30, 40), (1, 100, 3)])
def test_blocks_cover_each_voxel_once(shape):
    seen = np.zeros(shape, int)
    blocks = even_blocks(shape, 200)
    for block in blocks:
        seen[block.slices] += 1
    assert (seen == 1).all()
    assert max(b.size for b in blocks) <= 300


def test_greys_are_cut_to_their_range():
    image = random_image((5, 60, 70))
    low, high = grey_range(ArrayVolume(image), 0)
    assert (low, high) == tuple(np.percentile(image, (1, 99)))
    unit = scaled(image, (low, high))
    assert (unit.min(), unit.max()) == (0, 1)
    assert grey_range(ArrayVolume(np.full((2, 3, 4), 7)), 0) == (7, 8)
