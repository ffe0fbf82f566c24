"""Cuts, the volume loss and its inference against all labellings of small graphs; the objective of learning falls."""

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
from mitoseg.classical.structured import Example, VolumeLoss, augmented_labelling, learn_structured
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
    assert unary_costs(np.array([0.25, 0.5], np.float32), 0.25) == pytest.approx([0, -np.log(3)], abs=1e-6)


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


EVERY = [np.array(y) for y in itertools.product([False, True], repeat=10)]


def small_graph(seed, spread=0.15):
    rng = np.random.default_rng(seed)
    pairs = np.array(list(itertools.combinations(range(10), 2)))[rng.permutation(45)[:16]]
    truth = rng.random(10) < 0.4
    truth[0], truth[1] = True, False
    volume = 0.5 + rng.random(10)
    return VolumeLoss(truth, volume), rng.normal(size=10) * spread, pairs, rng.random(16) * spread


def test_the_loss_is_one_minus_jaccard():
    loss, *_ = small_graph(0)
    for labels in EVERY[::7]:
        both = loss.volume[labels & loss.truth].sum()
        either = loss.volume[labels | loss.truth].sum()
        assert loss(labels) == pytest.approx(1 - both / either)
    assert loss(loss.truth) == 0
    without_foreground = VolumeLoss(np.zeros(3, bool), np.ones(3), floor=2.0)
    assert without_foreground(np.zeros(3, bool)) == 0
    assert without_foreground(np.array([True, False, False])) == pytest.approx(1 / 3)


def test_the_tangent_is_the_derivative():
    loss, *_ = small_graph(1)
    labels = EVERY[345]
    miss, addition = loss.tangent(labels)
    step = 1e-6
    for truth, slope in ((True, miss), (False, addition)):
        wrong = np.flatnonzero((loss.truth == truth) & (labels != truth))[0]
        volume = loss.volume.copy()
        volume[wrong] += step
        more = VolumeLoss(loss.truth, volume)
        missed, added = more._errors(labels)
        value = (missed + added) / (loss.foreground + added)  # P as it was: the tangent is in FN and FP alone
        assert (value - loss(labels)) / step == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_under_a_linear_loss_one_cut_is_the_maximum(seed):
    loss, cost, pairs, weight = small_graph(seed)
    miss, addition = 0.3, 0.1

    def value(labels):
        missed, added = loss._errors(labels)
        return miss * missed + addition * added - graph_energy(labels, cost, pairs, weight)

    found = minimum_graph_cut(cost + loss.costs(miss, addition), pairs, weight)
    assert value(found) == pytest.approx(max(map(value, EVERY)))


def highest(loss, cost, pairs, weight):
    """The largest Delta(y) - E(y) of all labellings."""
    every = np.array(EVERY)
    missed, added = ~every @ (loss.volume * loss.truth), every @ (loss.volume * ~loss.truth)
    energies = every @ cost + (every[:, pairs[:, 0]] != every[:, pairs[:, 1]]) @ weight
    return ((missed + added) / (loss.foreground + added) - energies).max()


@pytest.mark.parametrize("spread", [0.05, 0.15, 0.5])
def test_the_augmented_labelling_is_nearly_the_maximum(spread):
    gaps = []
    for seed in range(20):
        loss, cost, pairs, weight = small_graph(seed, spread)
        labels, value = augmented_labelling(loss, cost, pairs, weight)
        assert value == pytest.approx(loss(labels) - graph_energy(labels, cost, pairs, weight))
        gaps.append(highest(loss, cost, pairs, weight) - value)
    assert min(gaps) > -1e-9  # never above the maximum
    assert np.mean(np.array(gaps) < 1e-9) >= 0.9
    assert max(gaps) < 0.05


def examples(count=4, nodes=60):
    rng = np.random.default_rng(5)
    made = []
    for _ in range(count):
        truth = np.zeros(nodes, bool)
        truth[10:25] = truth[40:46] = True
        features = np.stack([(truth - 0.5) + rng.normal(size=nodes), np.ones(nodes), rng.normal(size=nodes)], 1)
        pairs = np.stack([np.arange(nodes - 1), np.arange(1, nodes)], 1)
        edges = np.stack([np.ones(nodes - 1), rng.random(nodes - 1)], 1)
        made.append(Example(features, pairs, edges, VolumeLoss(truth, np.ones(nodes))))
    return made


def test_the_objective_falls_and_so_does_the_loss():
    start = np.array([1.0, 0, 0, 0, 0])
    weights, tried = learn_structured(examples(), start, rounds=12)
    assert min(tried) < 0.8 * tried[0]
    _, (least, *_) = learn_structured(examples(), weights, rounds=0)
    assert least == pytest.approx(min(tried), abs=1e-3)  # the weights are those of the least objective
    assert (weights[3:] >= 0).all()
    assert weights[3:].sum() > 0
    assert mean_loss(weights) < 0.8 * mean_loss(start)


def mean_loss(weights):
    losses = []
    for e in examples():
        labels = minimum_graph_cut(-(e.nodes @ weights[:3]), e.pairs, e.edges @ weights[3:])
        losses.append(e.loss(labels))
    return np.mean(losses)


def test_the_objective_is_its_formula():
    made = examples(2)
    weights = np.array([0.5, -0.1, 0.0, 0.2, 0.1])
    _, tried = learn_structured(made, weights, rounds=0, regularization=0.01)
    expected = 0.005 * weights @ weights
    for example in made:
        cost = -(example.nodes @ weights[:3]) / example.loss.foreground
        weight = example.edges @ weights[3:] / example.loss.foreground
        _, value = augmented_labelling(example.loss, cost, example.pairs, weight)
        expected += (value + graph_energy(example.loss.truth, cost, example.pairs, weight)) / 2
    assert tried[0] == pytest.approx(expected)  # the start as it is; then come its multiples
