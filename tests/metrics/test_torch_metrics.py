"""The torchmetrics classes say what the plain functions say, update once, and add up."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_accuracy, binary_average_precision, binary_jaccard_index

from mitoseg.errors import UserError
from mitoseg.metrics.counts import Counts, count, scores
from mitoseg.metrics.histogram import average_precision, best_threshold, curve, logit_histogram
from mitoseg.metrics.torch_metrics import BlockCounts, LogitHistogram, as_counts, block_scores


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
