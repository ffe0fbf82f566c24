"""Instances of two volumes, block by block: the same table whatever the blocks, and the rules of what is left out."""

import numpy as np
import pytest

from mitoseg.errors import UserError
from mitoseg.evaluation.instances import evaluate_instances, find_overlaps, prediction_instances, truth_instances
from mitoseg.evaluation.score import Bootstrap
from mitoseg.geometry import Box
from mitoseg.metrics.instances import count_overlaps
from mitoseg.segmentation import Labelling, label_array
from mitoseg.volumes import ArrayVolume, map_labels

RNG = np.random.default_rng(0)
TRUTH = label_array(RNG.random((6, 12, 14)) < 0.25)
RESULT = label_array((TRUTH > 0) ^ (RNG.random(TRUTH.shape) < 0.05))


def labels(array_zyx, **options):
    return map_labels(ArrayVolume(array_zyx), **options)


@pytest.mark.parametrize("crop", [None, Box((1, 0, 2), (6, 11, 12))])
def test_blocks_do_not_matter(crop):
    part = slice(None) if crop is None else crop.slices
    expected = count_overlaps(TRUTH[part], RESULT[part])
    for block in ((6, 12, 14), (2, 5, 3)):
        table = find_overlaps(ArrayVolume(RESULT), ArrayVolume(TRUTH), crop=crop, block=block)
        for column, values in zip((table.truth, table.result, table.voxels), expected, strict=True):
            np.testing.assert_array_equal(column, values)
        for ids_zyx, cut in ((TRUTH[part], table.truth_cut), (RESULT[part], table.result_cut)):
            inner = ids_zyx[1:-1, 1:-1, 1:-1]
            outside = ids_zyx.copy()
            outside[1:-1, 1:-1, 1:-1] = 0
            assert cut.tolist() == sorted(set(np.unique(outside)) - {0})
            assert set(np.unique(inner)) - {0, *cut.tolist()}


def test_ignored_voxels_count_nowhere():
    truth = TRUTH.astype(np.int32)
    truth[:, :4] = -1
    mapped = labels(truth, ignore_label=-1)
    table = find_overlaps(ArrayVolume(RESULT), truth_instances(mapped), labels=mapped)
    np.testing.assert_array_equal(table.voxels, count_overlaps(TRUTH[:, 4:], RESULT[:, 4:])[2])


def test_a_mask_of_truth_is_numbered_and_numbers_are_kept():
    mask = labels((TRUTH > 0).astype(np.uint8) * 255)
    assert not mask.numbered
    np.testing.assert_array_equal(truth_instances(mask).read(), TRUTH)
    shuffled = np.random.default_rng(1).permutation(TRUTH.max() + 1)
    shuffled[shuffled == 0], shuffled[0] = shuffled[0], 0
    given = labels(shuffled[TRUTH].astype(np.uint16))
    assert given.numbered
    np.testing.assert_array_equal(truth_instances(given).read(), shuffled[TRUTH])
    single = map_labels(ArrayVolume((TRUTH > 0).astype(np.uint8), metadata={"kind": "instances"}))
    assert truth_instances(single).read().max() == 1


@pytest.mark.parametrize("values", [RESULT, (RESULT > 0).astype(np.uint8), (RESULT > 0) * np.float32(0.7)])
def test_a_prediction_of_any_kind(values):
    found = prediction_instances(ArrayVolume(values))
    np.testing.assert_array_equal(found.read(), RESULT)
    assert prediction_instances(ArrayVolume(values), Labelling(26)).read().max() <= RESULT.max()


@pytest.mark.parametrize("dtype", [np.uint64, np.int64, np.float64])
def test_ids_of_any_size_are_kept_apart(dtype, monkeypatch):
    monkeypatch.setattr("mitoseg.volumes.base.SLAB_VOXELS", 400)  # several slabs
    steps = {np.uint64: 2**59 + 1, np.int64: 2**58 + 1, np.float64: 2**40}[dtype]
    wide = (TRUTH.astype(dtype) % 16 * dtype(steps), RESULT.astype(dtype) % 16 * dtype(steps))
    assert wide[0].max() >= 2**43
    truth = labels(wide[0])
    assert truth.numbered
    found = prediction_instances(ArrayVolume(wide[1]), kind="instances")
    table = find_overlaps(found, truth_instances(truth), labels=truth)
    wanted = count_overlaps(TRUTH % 16, RESULT % 16)
    for column, values in zip((table.truth, table.result, table.voxels), wanted, strict=True):
        np.testing.assert_array_equal(column, values)
    with pytest.raises(UserError, match="negative"):
        prediction_instances(ArrayVolume(-wide[1].astype(np.int64)), kind="instances")


def test_the_report_pools_volumes_and_counts_small_ones_apart():
    table = find_overlaps(ArrayVolume(RESULT), ArrayVolume(TRUTH))
    found = evaluate_instances([table, table], small=3, bootstrap=Bootstrap(50, 3))
    sizes = np.bincount(TRUTH.ravel())[1:]
    assert found["all"]["truth"] == 2 * (sizes >= 3).sum()
    assert found["small"]["truth"] == 2 * (sizes < 3).sum()
    assert found["all"]["truth"] == found["whole"]["truth"] + found["cut"]["truth"]
    assert found["bootstrap"] == {"resamples": 50, "seed": 3, "level": 0.95}
    same = evaluate_instances([find_overlaps(ArrayVolume(TRUTH), ArrayVolume(TRUTH))], small=0)
    assert [row["f1"] for row in same["all"]["matched"]] == [1, 1]
    assert same["adapted_rand_error"] == pytest.approx(0)
    assert same["all"]["volume_error"] == same["all"]["splits"] == same["all"]["merges"] == 0
    for value in (-1, 2**32, 0.5):
        with pytest.raises(UserError, match="instance ids"):
            find_overlaps(ArrayVolume(np.full((2, 2, 2), value)), ArrayVolume(np.zeros((2, 2, 2), np.uint8)))
