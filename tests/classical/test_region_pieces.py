"""Reading, statistics, graph, rays and cuts of supervoxels against plain computations."""

import itertools
import sys

import numpy as np
import pytest
from scipy import ndimage

from mitoseg.classical.describing import (
    RAY_FEATURES,
    cast_rays,
    centres,
    directions,
    histograms,
    label_counts,
    means,
    ray_features,
    region_graph,
    spreads,
    supervoxels,
)
from mitoseg.classical.features import even_blocks, grey_range, scaled
from mitoseg.classical.graph_cut import cut_ladder, energy, minimum_graph_cut
from mitoseg.errors import UserError
from mitoseg.volumes import ArrayVolume

SIZE = (20.0, 5.0, 5.0)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def region_zyx(rng):
    return np.repeat(np.repeat(rng.permutation(60).reshape(3, 4, 5), 3, 1), 4, 2).astype(np.int32)


@pytest.mark.parametrize("shape", [(5, 7, 9), (20, 30, 40), (1, 100, 3)])
def test_blocks_cover_each_voxel_once(shape):
    seen = np.zeros(shape, int)
    blocks = even_blocks(shape, 200)
    for block in blocks:
        seen[block.slices] += 1
    assert (seen == 1).all()
    assert max(b.size for b in blocks) <= 300


def test_greys_are_cut_to_their_range(rng):
    image = rng.integers(0, 255, (5, 60, 70)).astype(np.uint8)
    low, high = grey_range(ArrayVolume(image), 0)
    assert (low, high) == tuple(np.percentile(image, (1, 99)))
    unit = scaled(image, (low, high))
    assert (unit.min(), unit.max()) == (0, 1)
    assert grey_range(ArrayVolume(np.full((2, 3, 4), 7)), 0) == (7, 8)


def test_statistics_are_scipy_s(region_zyx, rng):
    values = rng.random((2, *region_zyx.shape)).astype(np.float32)
    index, flat = np.arange(60), region_zyx.ravel()
    found = means(flat, values.reshape(2, -1), 60)
    np.testing.assert_allclose(found, np.stack([ndimage.mean(v, region_zyx, index) for v in values], 1), rtol=1e-5)
    np.testing.assert_allclose(
        centres(region_zyx, 60), ndimage.center_of_mass(np.ones(region_zyx.shape), region_zyx, index), rtol=1e-5
    )
    counts = np.stack(ndimage.histogram(values[0], 0, 1, 8, region_zyx, index))
    np.testing.assert_allclose(histograms(flat, values[0].ravel(), 60, 8), counts / 12, rtol=1e-5)


def test_spreads_are_in_nm_along_the_own_axes(region_zyx):
    expected = [0, 5 * np.sqrt(2 / 3), 5 * np.sqrt(1.25)]  # one slice, three rows, four columns
    np.testing.assert_allclose(spreads(region_zyx, 60, SIZE), np.tile(expected, (60, 1)), atol=1e-2)


def test_ignored_voxels_are_not_counted():
    region, label = np.array([0, 0, 0, 1, 1], np.int32), np.array([0, 1, 255, 255, 255])
    fg, known = label_counts(region, label, 3, 255)
    assert (fg.tolist(), known.tolist()) == ([1, 0, 0], [2, 0, 0])


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


def test_neighbours_count_by_the_area_they_share():
    region = np.array([[[0, 0, 1], [2, 2, 2]]], np.int32)
    graph = region_graph(region, np.zeros(region.shape, np.uint8), (1, 1, 1))
    found = graph.neighbour_means(np.array([[1.0], [10.0], [100.0]], np.float32))
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
    unit, _ = directions()
    length, found = cast_rays(boundary, centre, unit[None], SIZE, reach=60.0, level=128)
    expected = [[naive_ray(boundary, c, u, SIZE, 60.0, 128) for u in unit] for c in centre]
    np.testing.assert_allclose(length, [[e[0] for e in row] for row in expected])
    np.testing.assert_array_equal(found, [[e[1] for e in row] for row in expected])


def test_opposite_directions_are_opposite_rows():
    unit, group = directions()
    np.testing.assert_allclose(unit, -unit[::-1])
    assert np.bincount(group).tolist() == [2, 2, 4, 2, 4, 4, 8]


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


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_is_the_least_of_all_labellings(seed):
    pytest.importorskip("maxflow")
    rng = np.random.default_rng(seed)
    pairs = np.array(list(itertools.combinations(range(9), 2)))[rng.permutation(36)[:14]]
    cost, weight = rng.normal(size=9), rng.random(14)
    found = minimum_graph_cut(cost, pairs, weight)
    every = [np.array(y) for y in itertools.product([False, True], repeat=9)]
    least = min(energy(y, cost, pairs, weight) for y in every)
    assert energy(found, cost, pairs, weight) == pytest.approx(least)


def test_the_ladder_agrees_with_each_of_its_cuts(rng):
    pytest.importorskip("maxflow")
    pairs = np.array(list(itertools.combinations(range(12), 2)))[rng.permutation(66)[:25]]
    log_odds, size, weight = rng.normal(size=12) * 2, 0.5 + rng.random(12), rng.random(25)
    levels = np.linspace(-3, 3, 7)
    found = cut_ladder(log_odds, size, pairs, weight, levels)
    for level in levels:
        np.testing.assert_array_equal(found >= level, minimum_graph_cut(size * (level - log_odds), pairs, weight))
    none = cut_ladder(log_odds, size, pairs, 0 * weight, levels)
    np.testing.assert_array_equal(none, log_odds)


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "maxflow", None)
    with pytest.raises(UserError, match=r"PyMaxflow.*pip install \"mitoseg\[classical\]\""):
        minimum_graph_cut(np.zeros(1), np.zeros((0, 2), int), np.zeros(0))
