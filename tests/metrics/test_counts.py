"""Counts, scores and their intervals against scikit-learn, SciPy and hand-made tables."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from mitoseg.metrics.counts import INTERVALS, Counts, bootstrap_intervals, count, scores

counts_ = st.builds(Counts, *[st.integers(0, 10**12)] * 4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("shape", [(50,), (7, 9), (3, 4, 5)])
def test_scores_agree_with_sklearn(shape, share, seed):
    rng = np.random.default_rng(seed)
    truth = (rng.random(shape) < share).astype(np.uint8)
    truth[rng.random(shape) < 0.1] = 255
    truth.flat[:4] = 0, 0, 1, 1
    prediction = rng.random(shape) < share
    prediction.flat[:4] = False, True, False, True
    ours = scores(count(prediction, truth))
    kept = truth != 255
    y, p = truth[kept], prediction[kept].astype(np.uint8)
    theirs = {
        "jaccard_foreground": jaccard_score(y, p),
        "jaccard_background": jaccard_score(y, p, pos_label=0),
        "jaccard_mean": jaccard_score(y, p, average="macro"),
        "dice": f1_score(y, p),
        "precision": precision_score(y, p),
        "recall": recall_score(y, p),
        "accuracy": accuracy_score(y, p),
        "voxels": kept.sum(),
    }
    assert ours == pytest.approx(theirs)
    assert ours["voxels"] == theirs["voxels"]


def test_scores_by_hand():
    s = scores(Counts(tp=6, fp=2, fn=4, tn=88))
    jaccards = [6 / 12, 88 / 94, (6 / 12 + 88 / 94) / 2]
    assert list(s.values()) == pytest.approx([*jaccards, 12 / 18, 0.75, 0.6, 0.94, 100])
    assert list(s.values())[4:] == [0.75, 0.6, 0.94, 100]
    published = scores(Counts(tp=5690, fp=310, fn=310, tn=93690))  # at 5 % foreground both are the same map
    assert published["jaccard_foreground"] == pytest.approx(0.902, abs=1e-3)
    assert published["jaccard_mean"] == pytest.approx(0.948, abs=1e-3)
    nothing = scores(Counts(tn=9))
    undefined = ("jaccard_foreground", "jaccard_mean", "dice", "precision", "recall")
    assert all(math.isnan(nothing[name]) for name in undefined)
    assert nothing["jaccard_background"] == 1
    assert scores(Counts(fn=3))["jaccard_foreground"] == 0


@given(counts_, counts_)
def test_counts_add_up(a, b):
    total = a + b
    assert total.voxels == a.voxels + b.voxels
    assert total - b == a
    assert total.foreground + total.background == total.voxels


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_pooling_parts_is_counting_the_whole(parts, seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 255], 40).astype(np.uint8)
    prediction = rng.random(40) < 0.5
    pieces = zip(np.array_split(prediction, parts), np.array_split(truth, parts), strict=True)
    assert sum((count(p, t) for p, t in pieces), Counts()) == count(prediction, truth)


def test_pooled_is_not_the_mean_of_slices():
    truth = np.array([[1, 1, 1, 1], [1, 0, 0, 0]])
    prediction = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool)
    assert scores(count(prediction, truth))["jaccard_foreground"] == 0.8
    per_slice = [scores(count(p, t))["jaccard_foreground"] for p, t in zip(prediction, truth, strict=True)]
    assert np.mean(per_slice) == 0.5


def test_what_cannot_be_counted_is_refused():
    assert count(np.array([True, False]), np.array([True, True])) == Counts(tp=1, fn=1)
    for dtype, truth, match in (
        (bool, [0] * 4, "shape"),
        (np.uint8, [0] * 3, "boolean"),
        (bool, [0, 1, 2], "map the"),
    ):
        with pytest.raises(ValueError, match=match):
            count(np.zeros(3, dtype), np.array(truth))


def test_scoring_needs_no_torch():
    code = "import sys, mitoseg.evaluation.score; sys.exit(bool({'torch', 'torchmetrics'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
    columns = tuple(np.array([[p.tp, p.fp, p.fn, p.tn] for p in parts(n, n)]).T)
    options = {"confidence_level": level, "method": "percentile", "n_resamples": 500}
    theirs = bootstrap(columns, statistic, paired=True, rng=3, **options)
    assert found == pytest.approx(tuple(theirs.confidence_interval))


def test_the_score_lies_within_and_the_seed_decides():
    found = bootstrap_intervals(parts(0), seed=1)
    pooled = scores(sum(parts(0), Counts()))
    assert set(found) == set(INTERVALS)
    assert all(low < pooled[name] < high for name, (low, high) in found.items())
    assert bootstrap_intervals(parts(0), seed=1) == found
    assert bootstrap_intervals(parts(0), seed=2) != found
    assert bootstrap_intervals([Counts(3, 1, 1, 5)] * 4)["dice"] == (0.75, 0.75)


def test_what_says_nothing_of_spread():
    for given_ in ([], [Counts(1, 2, 3, 4)]):
        assert all(math.isnan(end) for ends in bootstrap_intervals(given_).values() for end in ends)
    assert bootstrap_intervals([Counts(tp=1, fn=1), Counts(tn=5)])["recall"] == (0.5, 0.5)
    nothing = bootstrap_intervals([Counts(tn=3), Counts(tn=5)])
    assert all(math.isnan(end) for end in nothing["recall"])
    assert nothing["jaccard_background"] == (1, 1)
