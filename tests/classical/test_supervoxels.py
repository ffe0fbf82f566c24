"""Supervoxels against plain computations; both methods on a noisy phantom: better with neighbours, tuned."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from noisy_phantom import VOXEL_SIZE, noisy_phantom
from scipy import ndimage
from sklearn.kernel_approximation import Nystroem

from mitoseg.classical.describing import (
    RAY_FEATURES,
    RegionDescriber,
    cast_rays,
    centres,
    directions,
    histograms,
    means,
    ray_features,
    region_graph,
    supervoxels,
    voxel_classes,
)
from mitoseg.classical.structured import StructuredSegmenter
from mitoseg.classical.supervoxels import LEVELS, SupervoxelSegmenter, best_level, choose_landmarks, region_labels
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume

pytest.importorskip("maxflow")

SIZE = (20.0, 5.0, 5.0)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def region_zyx(rng):
    return np.repeat(np.repeat(rng.permutation(60).reshape(3, 4, 5), 3, 1), 4, 2).astype(np.int32)


def test_statistics_are_scipy_s(region_zyx, rng):
    values = rng.random((2, *region_zyx.shape)).astype(np.float32)
    index, flat = np.arange(60), region_zyx.ravel()
    found = means(flat, values.reshape(2, -1), 60)
    np.testing.assert_allclose(found, np.stack([ndimage.mean(v, region_zyx, index) for v in values], 1), rtol=1e-5)
    centre, spread = centres(region_zyx, 60, SIZE)
    expected = ndimage.center_of_mass(np.ones(region_zyx.shape), region_zyx, index)
    np.testing.assert_allclose(centre, expected, rtol=1e-5)
    along = [0, 5 * np.sqrt(2 / 3), 5 * np.sqrt(1.25)]  # one slice, three rows, four columns
    np.testing.assert_allclose(spread, np.tile(along, (60, 1)), atol=1e-2)
    fg, known = region_labels(
        SimpleNamespace(region_zyx=np.array([[[0, 0, 0, 1, 1]]]), size=np.ones(3)), np.array([[[0, 1, 255, 255, 255]]])
    )
    assert (fg.tolist(), known.tolist()) == ([1, 0, 0], [2, 0, 0])
    counts = np.stack(ndimage.histogram(values[0], 0, 1, 8, region_zyx, index))
    np.testing.assert_allclose(histograms(flat, values[0].ravel(), 60, 8), counts / 12, rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 16])
def test_the_graph_is_a_loop_s(rng, depth):
    region = rng.integers(0, 9, (4, 5, 6)).astype(np.int32)
    boundary = rng.integers(0, 255, region.shape).astype(np.uint8)
    expected = {}
    for axis, place in itertools.product(range(3), np.ndindex(region.shape)):
        other = tuple(p + (a == axis) for a, p in enumerate(place))
        if other[axis] < region.shape[axis] and region[place] != region[other]:
            value = max(boundary[place], boundary[other])
            expected.setdefault(tuple(sorted((region[place], region[other]))), []).append((axis, value))
    graph = region_graph(region, boundary, SIZE, depth)
    assert [tuple(p) for p in graph.pairs] == sorted(expected)
    areas = (25.0, 100.0, 100.0)
    for pair, area, mean, crest in zip(graph.pairs, graph.area, graph.boundary, graph.crest, strict=True):
        axes, values = zip(*expected[tuple(pair)], strict=True)
        weights = [areas[a] for a in axes]
        assert area == pytest.approx(sum(weights))
        assert mean == pytest.approx(np.average(values, weights=weights), rel=1e-5)
        assert crest == max(values)
    region = np.array([[[0, 0, 1], [2, 2, 2]]], np.int32)  # neighbours count by the area they share
    found = region_graph(region, np.zeros(region.shape, np.uint8), (1, 1, 1)).neighbour_means(
        np.array([[1.0], [10.0], [100.0]], np.float32)
    )
    np.testing.assert_allclose(found[:, 0], [(10 + 2 * 100) / 3, (1 + 100) / 2, (2 * 1 + 10) / 3], rtol=1e-6)


def naive_ray(boundary, centre, unit, voxel_size, reach, level):
    step = min(voxel_size)
    for k in range(int(reach / step) + 1):
        at = [
            round(float(c + k * np.float32(u * (step / v)))) for c, u, v in zip(centre, unit, voxel_size, strict=True)
        ]
        if any(not 0 <= a < n for a, n in zip(at, boundary.shape, strict=True)):
            return k * step, 0
        if boundary[tuple(at)] >= level:
            return k * step, boundary[tuple(at)]
    return k * step, boundary[tuple(at)]


def test_rays_are_a_loop_s(rng):
    boundary = (rng.random((12, 40, 40)) ** 12 * 255).astype(np.uint8)
    centre = (rng.random((20, 3)) * (boundary.shape - np.ones(3))).astype(np.float32)
    unit, group = directions()
    np.testing.assert_allclose(unit, -unit[::-1])
    assert np.bincount(group).tolist() == [2, 2, 4, 2, 4, 4, 8]
    length, found = cast_rays(boundary, centre, unit[None], SIZE, reach=60.0)
    expected = [[naive_ray(boundary, c, u, SIZE, 60.0, 128) for u in unit] for c in centre]
    np.testing.assert_allclose(length, [[e[0] for e in row] for row in expected])
    np.testing.assert_array_equal(found, [[e[1] for e in row] for row in expected])


def test_ray_features_do_not_change_when_the_tissue_turns():
    grid = np.indices((41, 41, 41)) - 20
    inside = (grid[0] / 6) ** 2 + (grid[1] / 9) ** 2 + (grid[2] / 15) ** 2 <= 1
    boundary = ((~inside) * 255).astype(np.uint8)
    centre = np.array([[20, 20, 20]], np.float32)
    one = ray_features(boundary, centre, (5, 5, 5), reach=100.0)
    assert one.shape == (1, RAY_FEATURES)
    turned = ray_features(np.ascontiguousarray(boundary.transpose(2, 0, 1)), centre, (5, 5, 5), reach=100.0)
    np.testing.assert_allclose(one, turned, atol=1e-5)
    assert one[0, 0] == pytest.approx(0.35, abs=0.06)  # 6 voxels up, a little more to reach the outside


def test_supervoxels_are_connected_and_follow_an_edge():
    image = np.zeros((20, 40, 40, 1), np.float32)
    image[:, :, 17:] = 1
    region = supervoxels(image, 40.0, (5, 5, 5), blur=1.0)
    assert region.max() + 1 == len(np.unique(region)) == pytest.approx(62, abs=25)
    assert all(ndimage.label(region == r)[1] == 1 for r in range(region.max() + 1))
    left, right = set(np.unique(region[:, :, :17])), set(np.unique(region[:, :, 17:]))
    assert not left & right
    assert not supervoxels(image[:2, :2, :2], 40.0, (5, 5, 5)).any()


METHODS = [SupervoxelSegmenter, StructuredSegmenter]


class Describer(RegionDescriber):
    """Describes the noisy phantom once."""

    def describe(self, image_zyx):
        if image_zyx is not noisy_phantom()[0]:
            return super().describe(image_zyx)
        if not hasattr(self, "known"):
            self.known = super().describe(image_zyx)
        return self.known


@pytest.fixture(scope="module")
def describer():
    image, labels = noisy_phantom()
    made = Describer(VOXEL_SIZE, 50.0, compactness=0.2, samples=30_000, reach=200.0)
    return made.fit(image, labels["fit"])


@pytest.fixture(scope="module")
def fitted(describer):
    """Both methods, which share the describer."""
    (image, labels), made = noisy_phantom(), {}
    for method in METHODS:
        rounds = {"rounds": 12} if method is StructuredSegmenter else {}
        segmenter = method(VOXEL_SIZE, describer=describer, landmarks=100, **rounds)
        made[method] = segmenter.fit(image, labels["fit"]).tune(image, labels["validation"])
    return made


def jaccard(mask, label):
    known = label != 255
    return (mask & (label == 1)).sum() / ((mask | (label == 1)) & known).sum()


@pytest.mark.parametrize("method", METHODS)
def test_neighbours_make_it_better(fitted, method):
    segmenter, image, label = fitted[method], noisy_phantom()[0], noisy_phantom()[1]["test"]
    both = jaccard(segmenter.predict(image) > 0, label)
    segmenter.regularize = False
    alone = jaccard(segmenter.predict(image) > 0, label)
    segmenter.regularize = True
    assert both > alone + 0.01
    assert both > 0.75
    if method is StructuredSegmenter:
        objective = np.array(segmenter.objective_)
        assert (np.diff(objective) <= 0).all()
        assert objective[-1] < 0.95 * objective[3]  # the first four only scale the start


@pytest.mark.parametrize("method", METHODS)
def test_volumes_and_arrays_give_the_same(fitted, method):
    segmenter, image = fitted[method], noisy_phantom()[0][:, :64, :64]
    probability = segmenter.predict_proba(image)
    found = segmenter.predict_proba(ArrayVolume(image))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, probability)
    np.testing.assert_array_equal(segmenter.predict(image), found >= np.float32(segmenter.threshold))


def test_tuning_looks_at_what_is_labelled(fitted):
    segmenter, image, label = fitted[SupervoxelSegmenter], noisy_phantom()[0], noisy_phantom()[1]["test"]
    before = jaccard(segmenter.predict(image) > 0, label)
    kept = (segmenter.threshold_, segmenter.unary_threshold_, segmenter.pairwise_weight_)
    segmenter.tune(image, label)
    assert jaccard(segmenter.predict(image) > 0, label) >= before
    segmenter.threshold_, segmenter.unary_threshold_, segmenter.pairwise_weight_ = kept


def test_the_best_level_is_a_loop_s():
    rng = np.random.default_rng(0)
    log_odds, known = rng.normal(size=50), rng.integers(5, 9, 50)
    fg = np.where(log_odds + rng.normal(size=50) > 0.5, known - 1, 1)
    scores = []
    for level in LEVELS:
        tp = sum(f for f, s in zip(fg, log_odds, strict=True) if s >= level)
        union = sum(k if s >= level else f for f, k, s in zip(fg, known, log_odds, strict=True))
        scores.append(tp / union)
    assert best_level(log_odds, fg, known) == (LEVELS[np.argmax(scores)], pytest.approx(max(scores)))


def test_blocks_have_numbers_of_their_own(describer, monkeypatch):
    whole, image = describer.describe(noisy_phantom()[0]), noisy_phantom()[0][:, :80]
    z, y, x = image.shape
    halves = [Box((0, 0, 0), (z, y, x // 2)), Box((0, 0, x // 2), (z, y, x))]
    monkeypatch.setattr("mitoseg.classical.describing.even_blocks", lambda shape: halves)
    cut = describer.describe(image)
    left, right = cut.region_zyx[:, :, :64], cut.region_zyx[:, :, 64:]
    assert left.max() + 1 == right.min()
    assert right.max() + 1 == len(cut.size) == len(np.unique(cut.region_zyx))
    seam = (cut.graph.pairs[:, 0] <= left.max()) & (cut.graph.pairs[:, 1] > left.max())
    assert seam.any()
    assert whole.features.shape[1] == cut.features.shape[1]
    assert np.isfinite(cut.features).all()


def test_the_kernel_map_is_sklearn_s():
    rng = np.random.default_rng(0)
    features, label = rng.normal(size=(80, 5)).astype(np.float32), rng.random(80) < 0.3
    kernel = choose_landmarks(features, label, 20, rng)
    unit = (features - kernel.mean) / kernel.scale
    oracle = Nystroem(gamma=0.1, n_components=20, random_state=0).fit(kernel.landmarks)
    mine, theirs = kernel.map(features), oracle.transform(unit)
    np.testing.assert_allclose(mine @ mine.T, theirs @ theirs.T, atol=2e-3)


def test_a_boundary_lies_on_both_sides_of_a_change():
    label = np.zeros((1, 1, 12), np.uint8)
    label[..., 6:] = 1
    label[..., 0] = 255
    found = voxel_classes(label, 10.0, (30.0, 5.0, 5.0))
    assert found.ravel().tolist() == [255, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("method", METHODS)
def test_mistakes_are_one_line(method):
    image = np.zeros((4, 40, 40), np.uint8)
    for match, call in (
        ("differ in shape", lambda: method().fit(image, image[1:])),
        ("no mitochondrion", lambda: method().fit(image, image)),
        ("not fitted", lambda: method().predict(image)),
        ("no voxel size", lambda: method(voxel_size=(5.0, 5.0))),
        ("region_size is not above zero", lambda: method(region_size=0.0)),
        ("too few landmarks", lambda: method(landmarks=1)),
    ):
        with pytest.raises(UserError, match=match):
            call()
