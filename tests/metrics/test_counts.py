"""Counts and scores against scikit-learn and hand-made tables."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from mitoseg.metrics.counts import Counts, count, scores

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
    assert ours["jaccard_foreground"] == pytest.approx(jaccard_score(y, p))
    assert ours["jaccard_background"] == pytest.approx(jaccard_score(y, p, pos_label=0))
    assert ours["jaccard_mean"] == pytest.approx(jaccard_score(y, p, average="macro"))
    assert ours["dice"] == pytest.approx(f1_score(y, p))
    assert ours["precision"] == pytest.approx(precision_score(y, p))
    assert ours["recall"] == pytest.approx(recall_score(y, p))
    assert ours["accuracy"] == pytest.approx(accuracy_score(y, p))
    assert ours["voxels"] == kept.sum()


def test_a_table_by_hand():
    s = scores(Counts(tp=6, fp=2, fn=4, tn=88))
    assert s["jaccard_foreground"] == pytest.approx(6 / 12)
    assert s["jaccard_background"] == pytest.approx(88 / 94)
    assert s["jaccard_mean"] == pytest.approx((6 / 12 + 88 / 94) / 2)
    assert s["dice"] == pytest.approx(12 / 18)
    assert (s["precision"], s["recall"]) == (0.75, 0.6)
    assert (s["accuracy"], s["voxels"]) == (0.94, 100)


def test_the_published_pair_is_one_result():
    """At 5 % foreground, fg 0.902 and mean 0.948 are the same map (the design's trap 5)."""
    s = scores(Counts(tp=5690, fp=310, fn=310, tn=93690))
    assert s["jaccard_foreground"] == pytest.approx(0.902, abs=1e-3)
    assert s["jaccard_mean"] == pytest.approx(0.948, abs=1e-3)


def test_zero_division_is_named():
    nothing = Counts(tn=9)
    assert math.isnan(scores(nothing)["jaccard_foreground"])
    assert math.isnan(scores(nothing)["jaccard_mean"])
    for value in (0.0, 1.0):
        s = scores(nothing, zero_division=value)
        assert (s["jaccard_foreground"], s["dice"], s["precision"], s["recall"]) == (value,) * 4
        assert s["jaccard_background"] == 1
    assert scores(Counts(fn=3), zero_division=1.0)["jaccard_foreground"] == 0
    assert scores(Counts(), zero_division=0.5)["accuracy"] == 0.5


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


def test_boolean_truth_counts():
    assert count(np.array([True, False]), np.array([True, True])) == Counts(tp=1, fn=1)


@pytest.mark.parametrize(
    ("prediction", "truth", "match"),
    [
        (np.zeros(3, bool), np.zeros(4), "shape"),
        (np.zeros(3, np.uint8), np.zeros(3), "boolean"),
        (np.zeros(3, bool), np.array([0, 1, 2]), "map the labels"),
    ],
)
def test_what_cannot_be_counted_is_refused(prediction, truth, match):
    with pytest.raises(ValueError, match=match):
        count(prediction, truth)


def test_scoring_needs_no_torch():
    code = (
        "import sys, mitoseg.metrics.counts, mitoseg.metrics, mitoseg.evaluation.score; "
        "sys.exit(bool({'torch', 'torchmetrics'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
