import itertools
import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mitoseg.classical.graph_cut import (
    cut_in_parts,
    cut_ladder,
    minimum_cut,
    minimum_graph_cut,
    pair_weights,
    unary_costs,
)
from mitoseg.classical.graph_cut import energy as graph_energy
from mitoseg.errors import UserError

pytest.importorskip("maxflow")


def energy(mask, cost, weights):
    """E of the module's docstring, of one mask or of many in a stack."""
    signed, axes = mask.astype(np.int8), (-3, -2, -1)
    pairs = sum(w * np.abs(np.diff(signed, axis=a)).sum(axes) for a, w in zip(axes, weights, strict=True))
    return (cost * mask).sum(axes) + pairs


def all_masks(shape):
    """Every mask of a shape, stacked."""
    size = int(np.prod(shape))
    return ((np.arange(2**size)[:, None] >> np.arange(size)) & 1).reshape(-1, *shape)


@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 3, 4), (3, 2, 2), (1, 1, 6)])
@pytest.mark.parametrize("weights", [(0, 0, 0), (1.0, 1.0, 1.0), (0.1, 0.7, 2.0), (0, 3.0, 0.2)])
def test_no_mask_costs_less(shape, weights):
    for seed in range(3):
        cost = np.random.default_rng(seed).normal(0, 1.5, shape)
        least = energy(all_masks(shape), cost, weights).min()
        assert energy(minimum_cut(cost, weights), cost, weights) == pytest.approx(least)


def test_without_weights_each_voxel_decides_alone():
    cost = unary_costs(np.array([[[0.0, 0.2, 0.4, 1.0]]], np.float32), 0.3)
    assert minimum_cut(cost, (0, 0, 0)).tolist() == [[[False, False, True, True]]]


def test_a_thick_section_ties_less():
    z, y, x = pair_weights(3.0, (30.0, 5.0, 10.0))
    assert (z, y, x) == pytest.approx((0.5, 3.0, 1.5))
    # a lone slice that is against its neighbours survives where they are far away
    cost = np.full((3, 4, 4), -1.0)
    cost[1] = 1.5
    assert not minimum_cut(cost, pair_weights(1.0, (30.0, 5.0, 5.0)))[1].any()
    assert minimum_cut(cost, pair_weights(1.0, (5.0, 5.0, 5.0)))[1].all()


def clouds():
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.standard_normal((14, 32, 32)), 3)
    return -(smooth / smooth.std() * 2 - 1.5) + rng.normal(0, 1.5, smooth.shape)


def test_parts_with_enough_overlap_are_the_whole():
    cost, weights = clouds(), (1.0, 1.0, 1.0)
    whole = minimum_cut(cost, weights)
    assert 0.02 < whole.mean() < 0.5
    np.testing.assert_array_equal(cut_in_parts(cost, weights, (7, 16, 16), 12), whole)
    without = cut_in_parts(cost, weights, (7, 16, 16), 0)
    assert energy(whole, cost, weights) <= energy(without, cost, weights)
    assert np.any(without != whole)


def test_wrong_settings_are_refused():
    for weight in (-1, float("nan")):
        with pytest.raises(UserError, match="favour"):
            minimum_cut(clouds(), (1, weight, 1))
    with pytest.raises(UserError, match="parts"):
        cut_in_parts(clouds(), (1, 1, 1), (0, 4, 4))


@pytest.mark.parametrize("seed", range(8))
def test_a_cut_is_the_least_of_all_labellings(seed):
    rng = np.random.default_rng(seed)
    pairs = np.array(list(itertools.combinations(range(9), 2)))[rng.permutation(36)[:14]]
    cost, weight = rng.normal(size=9), rng.random(14)
    found = minimum_graph_cut(cost, pairs, weight)
    every = [np.array(y) for y in itertools.product([False, True], repeat=9)]
    least = min(graph_energy(y, cost, pairs, weight) for y in every)
    assert graph_energy(found, cost, pairs, weight) == pytest.approx(least)


def test_the_ladder_agrees_with_each_of_its_cuts():
    rng = np.random.default_rng(3)
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
