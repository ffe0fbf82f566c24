"""The log-odds histogram: scores at every threshold against brute force and scikit-learn; the same in torchmetrics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve
from torchmetrics.functional.classification import binary_accuracy, binary_average_precision, binary_jaccard_index

from mitoseg.errors import UserError
from mitoseg.metrics.counts import Counts, count, scores
from mitoseg.metrics.histogram import (
    BINS,
    CENTRES,
    EDGES,
    average_precision,
    best_threshold,
    curve,
    logit_histogram,
    precision_recall,
)
from mitoseg.metrics.torch_metrics import BlockCounts, LogitHistogram, as_counts, block_scores


def sample(seed, n=2000, share=0.2, gap=2.0):
    """Log-odds in the middle of their bins, so that thresholds at edges are exact."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < share).astype(np.uint8)
    truth[:2] = 0, 1
    logits = np.floor((rng.normal(0, 2, n) + gap * truth) * 100) / 100 + 0.005
    return logits, truth


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("gap", [-1.0, 0.0, 4.0])
def test_average_precision_and_curve_agree_with_sklearn(seed, share, gap):
    logits, truth = sample(seed, share=share, gap=gap)
    points = curve(logit_histogram(logits, truth))
    assert average_precision(points) == pytest.approx(average_precision_score(truth, logits))
    precision, recall = precision_recall(points)
    their_precision, their_recall, thresholds = precision_recall_curve(truth, logits)
    at = np.searchsorted(points.threshold_logit, thresholds) - 1
    assert precision[at] == pytest.approx(their_precision[:-1])
    assert recall[at] == pytest.approx(their_recall[:-1])
    assert (precision[-1], recall[-1]) == (their_precision[-1], their_recall[-1])


@pytest.mark.parametrize("seed", range(5))
def test_every_threshold_counts_exactly(seed):
    logits, truth = sample(seed, n=300)
    points = curve(logit_histogram(logits, truth))
    for k in range(0, BINS + 1, 37):
        assert points.at(points.threshold_logit[k]) == count(logits >= points.threshold_logit[k], truth)
    assert points.at(0.0) == count(logits >= 0, truth)
    assert points.at(math.inf) == count(np.zeros(300, bool), truth)
    assert points.at(-50.0) == count(np.ones(300, bool), truth)


@pytest.mark.parametrize("seed", range(5))
def test_best_threshold_is_the_best_of_all(seed):
    logits, truth = sample(seed, n=400)
    threshold, best = best_threshold(curve(logit_histogram(logits, truth)))
    at_all = [scores(count(logits >= t, truth))["jaccard_foreground"] for t in logits - 0.005]
    assert best == pytest.approx(max(at_all))
    assert scores(count(logits >= threshold, truth))["jaccard_foreground"] == pytest.approx(best)


@pytest.mark.parametrize(("last", "expected"), [(100, (101 + 2500) // 2), (2495, (2991 + 3000) // 2)])
def test_best_threshold_is_the_middle_of_the_longest_plateau(last, expected):
    """J = 2/4 for thresholds 2991..3000, 2/8 down to 2501, and 4/8 again down to the next background."""
    hist = np.zeros((2, BINS), np.int64)
    hist[1, 3000], hist[0, 2990], hist[1, 2500], hist[0, last] = 2, 4, 2, 9
    assert best_threshold(curve(hist)) == (EDGES[expected], 0.5)
    logits, truth = np.array([-3.0, -1.005, 5.005, 7.0]), np.array([0, 0, 1, 1])
    threshold, best = best_threshold(curve(logit_histogram(logits, truth)))
    assert best == 1
    assert threshold == pytest.approx(2.0, abs=0.011)


def test_calibrated_optimum_lies_at_j_over_one_plus_j():
    rng = np.random.default_rng(0)
    logits = rng.normal(-3, 3, 400_000)
    truth = rng.random(logits.size) < 1 / (1 + np.exp(-logits))
    threshold, best = best_threshold(curve(logit_histogram(logits, truth)))
    assert 1 / (1 + math.exp(-threshold)) == pytest.approx(best / (1 + best), abs=0.03)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1), st.integers(0, 1))
def test_any_number_has_a_bin(values, label):
    logits = np.array(values, np.float32)
    hist = logit_histogram(logits, np.full(logits.shape, label, np.uint8))
    assert hist.shape == (2, BINS)
    assert hist[label].sum() == hist.sum() == logits.size
    center = CENTRES[hist[label] > 0]
    clamped = np.clip(logits, -20, 20)
    assert np.abs(np.unique(clamped).min() - center.min()) <= 0.00501
    assert np.abs(np.unique(clamped).max() - center.max()) <= 0.00501


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_zero_is_an_edge_and_belongs_above(dtype):
    hist = logit_histogram(np.array([0.0, -0.001, 20, 1e4], dtype), np.array([1, 1, 1, 1]))
    assert [int(np.flatnonzero(hist[1])[i]) for i in range(3)] == [BINS // 2 - 1, BINS // 2, BINS - 1]
    assert hist[1, -1] == 2


def test_no_foreground_and_ignored_voxels():
    points = curve(logit_histogram(np.zeros(5), np.zeros(5)))
    threshold, best = best_threshold(points)
    assert threshold == 0
    assert math.isnan(best)
    assert math.isnan(average_precision(points))
    logits, truth = sample(0)
    hidden = truth.copy()
    hidden[::3] = 255
    kept = hidden != 255
    assert np.array_equal(logit_histogram(logits, hidden), logit_histogram(logits[kept], truth[kept]))


def test_what_is_no_histogram_is_refused():
    with pytest.raises(UserError, match="NaN"):
        logit_histogram(np.array([np.nan]), np.array([1]))
    with pytest.raises(ValueError, match="shape"):
        logit_histogram(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="shape"):
        curve(np.zeros((2, 5), int))


def batches(seed=0, n=3, shape=(2, 11, 13)):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        target = rng.choice([0, 1, 255], shape, p=[0.7, 0.2, 0.1]).astype(np.uint8)
        logits = np.floor((rng.normal(-1, 3, shape) + 4 * (target == 1)) * 100) / 100 + 0.005
        yield torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(target)


def gathered():
    logits, target = (torch.cat([b.flatten() for b in part]) for part in zip(*batches(), strict=True))
    return logits, target


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_state_is_the_plain_histogram(dtype):
    metric = LogitHistogram()
    expected = np.zeros_like(metric.histogram.numpy())
    rng = np.random.default_rng(5)
    for _ in range(2):
        logits = torch.from_numpy(rng.normal(0, 9, (4, 500)).astype(np.float32)).to(dtype)
        target = torch.from_numpy(rng.choice([0, 1, 255], (4, 500)))
        metric.update(logits, target)
        expected += logit_histogram(logits.float().numpy(), target.numpy())
    assert metric.compute().dtype == torch.int64
    assert np.array_equal(metric.histogram.numpy(), expected)
    metric.reset()
    assert metric.histogram.numpy().sum() == 0
    with pytest.raises(UserError, match="NaN"):
        metric.update(torch.tensor([math.nan]), torch.tensor([1]))
    with pytest.raises(ValueError, match="shape"):
        metric.update(torch.zeros(2), torch.zeros(3))


def test_scores_agree_with_counting_and_with_torchmetrics():
    metric = LogitHistogram()
    for batch in batches():
        metric.update(*batch)
    points = curve(metric.compute().numpy())
    threshold, best = best_threshold(points)
    logits, target = gathered()
    predicted = logits >= threshold
    assert scores(points.at(threshold)) == scores(count(predicted.numpy(), target.numpy()))
    theirs = binary_jaccard_index(predicted.int(), target.long(), ignore_index=255)
    assert best == pytest.approx(float(theirs))
    theirs = binary_average_precision(torch.sigmoid(logits.double()), target.long(), ignore_index=255)
    assert average_precision(points) == pytest.approx(float(theirs), abs=1e-6)


def test_states_of_two_processes_add_up():
    """What dist_reduce does: stack the states and sum them."""
    parts = [LogitHistogram() for _ in range(3)]
    for metric, (logits, target) in zip(parts, batches(), strict=True):
        metric.update(logits, target)
    whole = LogitHistogram()
    whole.update(*gathered())
    reduce = whole._reductions["histogram"]
    assert torch.equal(reduce(torch.stack([m.compute() for m in parts])), whole.compute())


def test_block_counts_agree_with_torchmetrics():
    metric = BlockCounts()
    logits, label = torch.randn(3, 50, 2), torch.randint(2, (3, 50))
    for batch in zip(logits, label, strict=True):
        metric.update(*batch)
    found = block_scores(as_counts(metric.compute()))
    predicted, truth = logits.argmax(-1).flatten(), label.flatten()
    assert found["block_jaccard"] == pytest.approx(float(binary_jaccard_index(predicted, truth)))
    assert found["block_accuracy"] == pytest.approx(float(binary_accuracy(predicted, truth)))
    assert as_counts(metric.counts) == count(predicted.bool().numpy(), truth.numpy())
    metric.reset()
    assert as_counts(metric.counts) == Counts()
