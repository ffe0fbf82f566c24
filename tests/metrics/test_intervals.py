"""Bootstrap intervals against SciPy's, and where they say nothing."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from mitoseg.metrics import Counts, bootstrap_intervals, scores
from mitoseg.metrics.intervals import SCORES


def parts(seed, n=8):
    rng = np.random.default_rng(seed)
    return [Counts(*(int(v) for v in rng.integers(1, 1000, 4))) for _ in range(n)]


def jaccard(tp, fp, fn, tn, axis=-1):
    return tp.sum(axis) / (tp + fp + fn).sum(axis)


def recall(tp, fp, fn, tn, axis=-1):
    return tp.sum(axis) / (tp + fn).sum(axis)


@pytest.mark.parametrize("level", [0.95, 0.5])
@pytest.mark.parametrize("n", [2, 8, 30])
@pytest.mark.parametrize(("name", "statistic"), [("jaccard_foreground", jaccard), ("recall", recall)])
def test_intervals_agree_with_scipy(name, statistic, n, level):
    found = bootstrap_intervals(parts(n, n), resamples=500, seed=3, level=level)[name]
    columns = np.array([[p.tp, p.fp, p.fn, p.tn] for p in parts(n, n)]).T
    theirs = bootstrap(
        tuple(columns), statistic, paired=True, n_resamples=500, confidence_level=level, method="percentile", rng=3
    )
    assert found == pytest.approx(tuple(theirs.confidence_interval))


def test_the_score_lies_within_and_the_seed_decides():
    found = bootstrap_intervals(parts(0), seed=1)
    pooled = scores(sum(parts(0), Counts()))
    assert set(found) == set(SCORES)
    assert all(low < pooled[name] < high for name, (low, high) in found.items())
    assert bootstrap_intervals(parts(0), seed=1) == found
    assert bootstrap_intervals(parts(0), seed=2) != found


def test_equal_parts_have_no_spread():
    low, high = bootstrap_intervals([Counts(3, 1, 1, 5)] * 4)["dice"]
    assert low == high == 0.75


@pytest.mark.parametrize("given", [[], [Counts(1, 2, 3, 4)]])
def test_one_part_says_nothing_of_spread(given):
    assert all(math.isnan(end) for ends in bootstrap_intervals(given).values() for end in ends)


def test_draws_without_a_denominator_do_not_count():
    found = bootstrap_intervals([Counts(tp=1, fn=1), Counts(tn=5)])
    assert found["recall"] == (0.5, 0.5)
    nothing = bootstrap_intervals([Counts(tn=3), Counts(tn=5)])
    assert all(math.isnan(end) for end in nothing["recall"])
    assert nothing["jaccard_background"] == (1, 1)
