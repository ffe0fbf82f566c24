"""Effect sizes, intervals and tests against SciPy, counting by hand, and simulated groups."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import mannwhitneyu, permutation_test

from mitoseg.evaluation.effects import adjust, bootstrap, cliffs_delta, hedges_g, object_test, volume_test

VALUES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


@given(VALUES, VALUES)
def test_cliffs_delta_counts_pairs(a, b):
    pairs = [(y > x) - (y < x) for x, y in itertools.product(a, b)]
    assert cliffs_delta(np.array(a), np.array(b)) == pytest.approx(sum(pairs) / len(pairs))


def test_effects_by_hand_as_a_linear_function_of_u_and_of_nothing():
    a, b = np.random.default_rng(1).normal(size=(2, 40))
    u = mannwhitneyu(b, a).statistic
    assert cliffs_delta(a, b) == pytest.approx(2 * u / 1600 - 1)
    assert object_test(a, b) == mannwhitneyu(b, a).pvalue
    a, b = np.array([1.0, 2, 3, 4]), np.array([3.0, 5, 7])
    pooled = math.sqrt((3 * (5 / 3) + 2 * 4) / 5)
    assert hedges_g(a, b) == pytest.approx((1 - 3 / 19) * 2.5 / pooled)
    assert hedges_g(b, a) == -hedges_g(a, b)
    assert math.isnan(hedges_g(a[:1], b))
    assert math.isnan(hedges_g(np.full(5, 0.1), np.full(5, 0.1)))

    none, some = np.zeros(0), np.ones(3)
    assert all(math.isnan(f(none, some)) for f in (cliffs_delta, hedges_g, object_test))
    ends = bootstrap([none], [some], resamples=100, level=0.9, seeds=([1], [2]))
    assert all(math.isnan(low) for low, _ in ends.values())
    assert math.isnan(volume_test([none, some], [some, some], permutations=100, rng=np.random.default_rng(1))[0])


def test_the_permutation_test_is_scipys():
    rng = np.random.default_rng(3)
    a, b = [rng.normal(0, 1, 5) for _ in range(4)], [rng.normal(1, 1, 7) for _ in range(3)]
    p, least = volume_test(a, b, permutations=1000, rng=rng)

    def apart(x, y, axis=-1):
        return np.abs(x.mean(axis=axis) - y.mean(axis=axis))

    means = [np.array([v.mean() for v in group]) for group in (a, b)]
    oracle = permutation_test(means, apart, alternative="greater", n_resamples=10_000)
    assert p == pytest.approx(oracle.pvalue)
    assert least == pytest.approx(1 / 35)


@pytest.mark.parametrize(("count", "p"), [(2, 1 / 3), (3, 0.1), (4, 2 / 70)])
def test_groups_far_apart_have_the_least_p(count, p):
    far = [np.array([100.0 + i]) for i in range(count)]
    near = [np.array([float(i)]) for i in range(count)]
    assert volume_test(near, far, permutations=1000, rng=np.random.default_rng(1)) == pytest.approx((p, p))
    assert volume_test(near, near, permutations=1000, rng=np.random.default_rng(1))[0] == 1


def test_random_permutations_stand_in_for_all():
    rng = np.random.default_rng(5)
    a, b = [rng.normal(0, 1, 3) for _ in range(7)], [rng.normal(1, 1, 3) for _ in range(7)]
    exact, _ = volume_test(a, b, permutations=5000, rng=rng)
    drawn, least = volume_test(a, b, permutations=3000, rng=rng)
    assert drawn == pytest.approx(exact, abs=0.02)
    assert least == 1 / 3001
    a = [np.array([0.0] * 1000), np.array([10.0])]  # a volume counts once
    b = [np.array([0.0]), np.array([10.0] * 1000)]
    assert volume_test(a, b, permutations=100, rng=np.random.default_rng(1))[0] == 1


def test_intervals_over_objects_are_scipys():
    rng = np.random.default_rng(7)
    a, b = rng.gamma(2, 3, 60), rng.gamma(2, 4, 50)
    ours = bootstrap([a], [b], resamples=4000, level=0.9, seeds=([1, 0], [1, 1]))
    for name, statistic in (("mean", np.mean), ("median", np.median)):
        for side, values in (("a", a), ("b", b)):
            theirs = scipy_bootstrap(
                (values,), statistic, confidence_level=0.9, method="percentile", n_resamples=4000, rng=2
            ).confidence_interval
            assert ours[f"{name}_{side}"] == pytest.approx(tuple(theirs), rel=0.05)
    for name, statistic in (("hedges_g", hedges_g), ("cliffs_delta", cliffs_delta)):
        theirs = scipy_bootstrap(
            (a, b), statistic, vectorized=False, confidence_level=0.9, method="percentile", n_resamples=2000, rng=2
        ).confidence_interval
        assert ours[name] == pytest.approx(tuple(theirs), abs=0.06)


def test_intervals_over_volumes_are_wider_where_volumes_differ():
    rng = np.random.default_rng(9)
    a = [rng.normal(shift, 1, 50) for shift in (0, 3, 6, 9)]
    b = [rng.normal(shift, 1, 50) for shift in (1, 4, 7, 10)]
    seeds = ([1, 0], [1, 1])
    by_volume = bootstrap(a, b, resamples=500, level=0.95, seeds=seeds)
    pooled = bootstrap([np.concatenate(a)], [np.concatenate(b)], resamples=500, level=0.95, seeds=seeds)
    assert np.ptp(by_volume["difference"]) > 3 * np.ptp(pooled["difference"])
    assert bootstrap(a, b, resamples=500, level=0.95, seeds=seeds) == by_volume
    assert bootstrap(a, b[:2], resamples=500, level=0.95, seeds=seeds)["mean_a"] == by_volume["mean_a"]


def test_false_alarms_when_volumes_differ_but_conditions_do_not():
    """Objects of a volume share its shift: U cries wolf far more often than 1 in 20, the test of volumes does not."""
    rng = np.random.default_rng(11)
    alarms = np.zeros(2)
    for _ in range(200):
        volumes = [rng.normal(rng.normal(0, 0.7), 1, 30) for _ in range(10)]
        a, b = volumes[:5], volumes[5:]
        p_volumes, _ = volume_test(a, b, permutations=252, rng=rng)
        alarms += [object_test(np.concatenate(a), np.concatenate(b)) < 0.05, p_volumes < 0.05]
    by_object, by_volume = alarms / 200
    assert by_object > 0.3
    assert by_volume < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_a_true_difference_is_found_with_its_size():
    rng = np.random.default_rng(13)
    a, b = ([rng.normal(mean, 1, 80) for _ in range(6)] for mean in (0, 0.8))
    assert hedges_g(np.concatenate(a), np.concatenate(b)) == pytest.approx(0.8, abs=0.15)
    low, high = bootstrap(a, b, resamples=500, level=0.95, seeds=([1], [2]))["hedges_g"]
    assert low < 0.8 < high
    assert volume_test(a, b, permutations=1000, rng=rng)[0] == pytest.approx(2 / 924)


def test_corrections_by_hand():
    assert adjust([0.01, 0.04, 0.03, 0.005], "holm") == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust([0.01, 0.04, 0.03, 0.005], "benjamini_hochberg") == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert adjust([0.01, 0.04], "none") == [0.01, 0.04]
    assert all(math.isnan(p) for p in adjust([math.nan, math.nan], "holm"))


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from(["holm", "benjamini_hochberg"]))
def test_corrections_only_raise_and_keep_the_order(p_values, correction):
    adjusted = np.array(adjust(p_values, correction))
    assert (adjusted >= np.array(p_values) - 1e-12).all()
    assert adjusted.max() <= 1
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(adjusted[order]) >= -1e-12).all()
