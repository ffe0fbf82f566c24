"""Scores of instances: against hand-made tables, scikit-image, and every possible matching."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import adapted_rand_error, variation_of_information

from mitoseg.metrics.instances import (
    Overlaps,
    count_overlaps,
    f1_interval,
    instance_scores,
    match_objects,
    match_scores,
    partition_scores,
    pool_overlaps,
)

NONE = np.zeros(0, np.int64)
volumes = arrays(np.int32, (3, 4, 5), elements=st.integers(0, 4))


def table(truth, result, truth_cut=(), result_cut=()):
    return Overlaps.collect([count_overlaps(np.asarray(truth), np.asarray(result))], truth_cut, result_cut)


def runs(*lengths):
    """Ids along a line: runs(("a", 3)) without letters, as (id, length) pairs."""
    return np.repeat([i for i, _ in lengths], [n for _, n in lengths])


@settings(max_examples=25, deadline=None)
@given(volumes, volumes, st.integers(1, 3))
def test_the_table_counts_pairs_in_any_blocks(truth, result, depth):
    parts = [count_overlaps(truth[z : z + depth], result[z : z + depth]) for z in range(0, 3, depth)]
    found = Overlaps.collect(parts, [], [])
    assert found.truth.shape == found.voxels.shape
    pairs = {(t, r): int(((truth == t) & (result == r)).sum()) for t in range(5) for r in range(5)}
    expected = {pair: n for pair, n in pairs.items() if n and pair != (0, 0)}
    rows = zip(found.truth.tolist(), found.result.tolist(), found.voxels.tolist(), strict=True)
    assert {(t, r): n for t, r, n in rows} == expected
    for side, volume in (("truth", truth), ("result", result)):
        ids, voxels = found.sizes(side)
        assert dict(zip(ids.tolist(), voxels.tolist(), strict=True)) == {
            i: int((volume == i).sum()) for i in range(1, 5) if (volume == i).any()
        }


def test_large_ids():
    last = 2**32 - 1
    truth, result = np.array([last, last, 1], np.uint32), np.array([7, last, 7], np.uint32)
    assert [c.tolist() for c in count_overlaps(truth, result)] == [[1, last, last], [7, 7, last], [1, 1, 1]]
    with pytest.raises(ValueError, match="differ in shape"):
        count_overlaps(truth, result[:2])


@settings(max_examples=40, deadline=None)
@given(volumes, volumes)
def test_partition_scores_are_those_of_scikit_image(truth, result):
    found = partition_scores(table(truth, result))
    inside = truth > 0
    if inside.sum() < 2:
        assert all(map(math.isnan, found.values()))
        return
    split, merge = variation_of_information(truth[inside], result[inside])
    assert found["variation_of_information_split"] == pytest.approx(split, abs=1e-9)
    assert found["variation_of_information_merge"] == pytest.approx(merge, abs=1e-9)
    if all(np.bincount(side[inside]).max() > 1 for side in (truth, result)):
        expected = adapted_rand_error(truth, result, ignore_labels=(0,))[0]
        assert found["adapted_rand_error"] == pytest.approx(expected)
    else:
        assert math.isnan(found["adapted_rand_error"])


def best_matching(truth, result, threshold):
    """Every one-to-one matching tried: the most pairs, and the largest sum of IoU among those."""
    iou = {}
    for t, r in itertools.product(range(1, 5), repeat=2):
        union = ((truth == t) | (result == r)).sum()
        value = ((truth == t) & (result == r)).sum() / union if union else 0
        if value > threshold:
            iou[t, r] = value
    best = (0, 0.0)
    for order in itertools.permutations(range(1, 5)):
        pairs = [iou[t, r] for t, r in enumerate(order, 1) if (t, r) in iou]
        best = max(best, (len(pairs), sum(pairs)))
    return best


@settings(max_examples=40, deadline=None)
@given(volumes, volumes, st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5]))
def test_matching_is_the_best_of_all(truth, result, threshold):
    truths, results, iou = match_objects(table(truth, result), threshold)
    assert len(set(truths.tolist())) == len(set(results.tolist())) == len(iou)
    count, total = best_matching(truth, result, threshold)
    assert len(iou) == count
    assert iou.sum() == pytest.approx(total)


def test_a_table_by_hand():
    half = runs((1, 4), (0, 4), (2, 6)), runs((1, 2), (2, 2), (0, 4), (3, 4), (0, 2))
    assert match_objects(table(*half), 0.5)[0].tolist() == [2]  # half is not enough
    #            truth 1 found well | 2 split in two      | 3 and 4 merged  | 5 missed | 9 made up
    truth = runs((1, 10), (2, 10), (3, 10), (4, 6), (5, 8), (0, 5))
    result = runs((1, 9), (0, 1), (2, 6), (3, 4), (4, 16), (0, 8), (9, 5))
    scores = instance_scores(table(truth, result, truth_cut=[1], result_cut=[9]), resamples=200)
    row = scores["all"]
    assert (row["truth"], row["result"], row["splits"], row["merges"]) == (5, 5, 1, 1)
    assert row["splits_and_merges_share"] == pytest.approx(0.4)
    assert row["volume_error"] == pytest.approx((9 + 6 + 4 + 16 + 5 - 44) / 44)
    half, strict = row["matched"]
    assert (half["iou"], half["tp"], half["fp"], half["fn"]) == (0.5, 3, 2, 2)  # 0.9, 0.6, and 10 / 16
    assert half["f1"] == half["precision"] == half["recall"] == half["recognition_quality"] == pytest.approx(0.6)
    assert half["average_precision"] == pytest.approx(3 / 7)
    assert half["segmentation_quality"] == pytest.approx((0.9 + 0.6 + 0.625) / 3)
    assert half["panoptic_quality"] == pytest.approx((0.9 + 0.6 + 0.625) / 5)
    assert (strict["iou"], strict["tp"], strict["fp"], strict["fn"]) == (0.75, 1, 4, 4)
    low, high = half["f1_interval"]
    assert 0 <= low < 0.6 < high <= 1
    cut, whole = scores["cut"], scores["whole"]
    assert (cut["truth"], cut["result"], cut["splits"], cut["merges"]) == (1, 2, 0, 0)
    assert (whole["truth"], whole["result"], whole["splits"], whole["merges"]) == (4, 3, 1, 1)
    assert cut["matched"][0]["tp"] == 1
    assert cut["volume_error"] == pytest.approx((9 + 5 - 10) / 10)
    assert cut["volume_result"] + whole["volume_result"] == row["volume_result"]

    scores = instance_scores(table([1, 1], [1, 1], truth_cut=[], result_cut=[1]), resamples=0)
    assert (scores["whole"]["result"], scores["cut"]["result"]) == (1, 0)  # a matched result goes with its truth
    assert math.isnan(scores["whole"]["matched"][0]["f1_interval"][0])


def test_links_need_a_share_of_the_smaller():
    """A result that leaks by less than a quarter into a smaller neighbour merges nothing."""
    truth = runs((1, 10), (2, 5))
    for overlap in (1, 2):
        result = runs((1, 10 + overlap), (2, 5 - overlap))
        assert instance_scores(table(truth, result))["all"]["merges"] == (overlap == 2)
    assert instance_scores(table(truth, runs((1, 11), (2, 4))), share=0.2)["all"]["merges"] == 1


def test_small_objects_become_background():
    truth = runs((1, 10), (2, 2), (3, 5), (0, 3))
    result = runs((1, 10), (2, 2), (4, 4), (0, 1), (5, 3))
    kept, truths, results = table(truth, result, [2, 3], [5]).without_small(5)
    assert (truths, results) == (1, 3)
    row = instance_scores(kept)["all"]
    assert (row["truth"], row["result"], row["matched"][0]["tp"]) == (2, 1, 1)
    assert row["volume_result"] == 10


def test_pooling_keeps_objects_apart():
    one = table(runs((1, 4), (2, 4)), runs((1, 4), (3, 4)), [2], [3])
    two = table(runs((0, 4), (1, 4)), runs((1, 4), (0, 4)), [1], [])
    pooled = pool_overlaps([one, two, one])
    row = instance_scores(pooled)["all"]
    assert (row["truth"], row["result"], row["matched"][0]["tp"]) == (5, 5, 4)
    assert instance_scores(pooled)["cut"]["truth"] == 3
    assert instance_scores(pooled)["cut"]["matched"][0]["tp"] == 2
    assert instance_scores(pool_overlaps([one])) == instance_scores(one)


def test_nothing_to_score():
    assert all(math.isnan(v) for k, v in match_scores(0, 0, 0, 0).items() if k not in ("tp", "fp", "fn"))
    for truth, result in (([0, 0], [0, 0]), ([1, 1], [0, 0]), ([0, 0], [1, 1])):
        row = instance_scores(table(truth, result))["all"]
        assert row["truth"] == truth[0]
        assert row["result"] == result[0]
        f1 = row["matched"][0]["f1"]
        assert math.isnan(f1) if truth == result else f1 == 0


def test_the_interval_is_that_of_drawing_objects():
    """Against objects drawn one by one."""
    outcomes = np.repeat([0, 1, 2], [60, 8, 6])
    drawn = np.random.default_rng(0).choice(outcomes, (4000, 74))
    tp = (drawn == 0).sum(axis=1)
    expected = np.quantile(2 * tp / (tp + 74), [0.025, 0.975])
    assert f1_interval(60, 8, 6, resamples=4000) == pytest.approx(expected, abs=0.01)
    assert f1_interval(60, 8, 6) == f1_interval(60, 8, 6)
    assert f1_interval(6000, 801, 603, resamples=50) != f1_interval(6000, 801, 603, resamples=50, seed=2)
    assert f1_interval(5, 0, 0) == (1, 1)
