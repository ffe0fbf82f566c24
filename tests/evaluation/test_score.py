"""Streamed scores are those of the whole volume, for any slab, crop and voxel size."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import jaccard_score

import mitoseg.evaluation.score as score_module
from mitoseg.engines import LocalEngine
from mitoseg.errors import UserError
from mitoseg.evaluation import evaluate, pool_evaluations
from mitoseg.evaluation.score import VOXEL_BYTES, _blocks
from mitoseg.geometry import Box
from mitoseg.metrics import count, scores
from mitoseg.storage import plain
from mitoseg.volumes.base import ArrayVolume

SHAPE = (13, 24, 21)


def pair(seed=0, ignored=0.1, voxel_size=(5.0, 5.0, 5.0), **metadata):
    rng = np.random.default_rng(seed)
    coarse = rng.random([-(-n // 4) for n in SHAPE]) < 0.3
    truth = np.kron(coarse, np.ones((4, 4, 4), bool))[: SHAPE[0], : SHAPE[1], : SHAPE[2]].astype(np.uint8)
    noise = rng.normal(0, 0.25, SHAPE)
    probability = np.clip(0.3 + 0.4 * truth + noise, 0, 1).astype(np.float32)
    truth[rng.random(SHAPE) < ignored] = 255
    metadata = {"kind": "probability", "threshold": 0.45, **metadata}
    return ArrayVolume(probability, metadata=metadata), ArrayVolume(truth, voxel_size)


def test_scores_agree_with_sklearn():
    prediction, truth = pair()
    result = evaluate(prediction, truth)
    kept = truth.read() != 255
    y, p = truth.read()[kept], (prediction.read() >= 0.45)[kept]
    assert result["jaccard_foreground"] == pytest.approx(jaccard_score(y, p))
    assert result["jaccard_background"] == pytest.approx(jaccard_score(y, p, pos_label=0))
    assert result["voxels"] == kept.sum()
    assert (result["threshold"], result["threshold_source"]) == (0.45, "the prediction's metadata")
    assert (result["crop"], result["shape"]) == ("[0:13,0:24,0:21]", [13, 24, 21])


@pytest.mark.parametrize("voxel_size", [(5.0, 5.0, 5.0), (40.0, 5.0, 5.0), (10.0, 4.0, 8.0), None])
@pytest.mark.parametrize("ignored", [0.0, 0.1])
@pytest.mark.parametrize("crop", [None, Box((3, 5, 2), (11, 20, 21))])
def test_any_slab_gives_the_same(monkeypatch, crop, ignored, voxel_size):
    prediction, truth = pair(ignored=ignored, voxel_size=voxel_size)
    whole = plain(evaluate(prediction, truth, crop=crop, depth=100))
    for depth in (1, 2, 5, 8, None):
        assert plain(evaluate(prediction, truth, crop=crop, depth=depth)) == whole
    monkeypatch.setattr(score_module, "_PLANE", 7)
    monkeypatch.setattr(score_module, "BLOCK_VOXELS", 2000)
    assert plain(evaluate(prediction, truth, crop=crop)) == whole


@pytest.mark.parametrize("voxel_size", [(5.0, 5.0, 5.0), (15.0, 5.0, 5.0)])
def test_bands_leave_out_what_scipy_says_also_beyond_the_crop(voxel_size):
    prediction, truth = pair(ignored=0.0, voxel_size=voxel_size)
    crop = Box((2, 3, 4), (9, 20, 15))
    rows = evaluate(prediction, truth, crop=crop, bands=[2, 4], depth=3)["boundary"]
    spacing = np.array(voxel_size) / min(voxel_size)
    t = truth.read()
    far_3d = np.where(t, distance_transform_edt(t, spacing), distance_transform_edt(t == 0, spacing))
    far_2d = np.stack([np.where(s, distance_transform_edt(s), distance_transform_edt(s == 0)) for s in t])
    inside = np.zeros(SHAPE, bool)
    inside[crop.slices] = True
    for row in rows:
        kept = inside & ((far_3d if row["dims"] == 3 else far_2d) > row["distance"])
        expected = scores(count((prediction.read() >= 0.45)[kept], t[kept]))
        assert {key: row[key] for key in expected} == pytest.approx(expected, nan_ok=True)
        for value, name in ((1, "foreground"), (0, "background")):
            share = 1 - (kept & (t == value)).sum() / (inside & (t == value)).sum()
            assert row[f"left_out_{name}"] == pytest.approx(share)
    assert [(row["distance"], row["dims"]) for row in rows] == [(2, 3), (2, 2), (4, 3), (4, 2)]


def test_the_same_in_little_memory():
    prediction, truth = pair()
    engine = LocalEngine()
    engine.item_bytes = 50_000
    assert len(list(_blocks(truth.box, (10, 10, 10), None, engine.item_bytes / VOXEL_BYTES))) > 1
    assert str(evaluate(prediction, truth, engine=engine)) == str(evaluate(prediction, truth))


def test_a_shift_by_two_is_forgiven_by_a_band_of_two():
    truth = np.zeros((6, 40, 40), np.uint8)
    truth[:, 10:30, 10:30] = 1
    shifted = np.roll(truth, 2, axis=2)
    result = evaluate(ArrayVolume(shifted, metadata={"kind": "mask"}), ArrayVolume(truth))
    assert result["jaccard_foreground"] == pytest.approx(18 / 22)
    by_band = {row["distance"]: row["jaccard_foreground"] for row in result["boundary"] if row["dims"] == 2}
    assert by_band[1] < 1
    assert by_band[2] == by_band[5] == 1


def test_what_the_threshold_argument_changes():
    prediction, truth = pair()
    given = evaluate(prediction, truth, threshold=0.8)
    assert given["threshold_source"] == "given"
    assert given["recall"] < evaluate(prediction, truth)["recall"]
    assert evaluate(prediction, truth, bands=[])["boundary"] == []


def test_the_voxel_size_argument_wins():
    prediction, truth = pair(voxel_size=(5.0, 5.0, 5.0))
    thick = evaluate(prediction, truth, voxel_size=(50, 5, 5))
    assert thick["voxel_size"] == [50, 5, 5]
    assert thick["boundary"][0]["left_out_foreground"] == thick["boundary"][1]["left_out_foreground"]
    assert thick["boundary"] != evaluate(prediction, truth)["boundary"]


def test_pooling_two_halves_is_the_whole():
    """Cut where both sides' halos would matter, by way of crops, which read beyond themselves."""
    prediction, truth = pair()
    whole = evaluate(prediction, truth, slabs=13)
    crops = [Box((0, 0, 0), (5, 24, 21)), Box((5, 0, 0), (13, 24, 21))]
    pooled = pool_evaluations([evaluate(prediction, truth, crop=crop, slabs=13) for crop in crops])
    assert pooled["crop"] == [str(crop) for crop in crops]
    assert plain({**pooled, "crop": None}) == plain({**whole, "crop": None})
    assert plain(pool_evaluations([whole])) == plain(whole)
    with pytest.raises(ValueError, match="bands"):
        pool_evaluations([whole, evaluate(prediction, truth, bands=[1])])
    with pytest.raises(ValueError, match="no evaluation"):
        pool_evaluations([])


def test_nothing_to_find_is_nan_not_an_error():
    nothing = np.zeros((2, 5, 5), np.uint8)
    result = evaluate(ArrayVolume(nothing), ArrayVolume(nothing))
    assert math.isnan(result["jaccard_foreground"])
    assert result["jaccard_background"] == 1
    assert math.isnan(result["boundary"][0]["left_out_foreground"])
    json.dumps(result)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"crop": Box((0, 0, 0), (14, 2, 2))}, "leaves the volume"),
        ({"crop": Box((2, 0, 0), (2, 2, 2))}, "empty"),
        ({"bands": [0]}, "no width"),
        ({"threshold": 2.0}, "not a probability"),
        ({"slabs": 0}, "number of parts"),
        ({"slabs": 2.5}, "number of parts"),
        ({"prediction": ArrayVolume(np.zeros((13, 24, 20), np.float32))}, r"prediction and truth differ in shape"),
    ],
)
def test_mistakes_are_one_line(change, match):
    prediction, truth = pair()
    with pytest.raises(UserError, match=match) as caught:
        evaluate(**{"prediction": prediction, "truth": truth, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("MITOSEG_DATA" not in os.environ, reason="MITOSEG_DATA names no folder of real data")
def test_real_labels_shifted_by_two_pixels():
    path = Path(os.environ["MITOSEG_DATA"]) / "epfl_ca1" / "testing_z000-081_groundtruth.tif"
    truth = (tifffile.imread(path, key=range(12)) > 0).astype(np.uint8)
    prediction = ArrayVolume(np.roll(truth, 2, axis=2), metadata={"kind": "mask"})
    result = evaluate(prediction, ArrayVolume(truth, (5.0, 5.0, 5.0)))
    assert 0.88 < result["jaccard_foreground"] < 0.95
    assert result["jaccard_mean"] > result["jaccard_foreground"] + 0.02
    perfect = [row["jaccard_foreground"] for row in result["boundary"] if row["distance"] >= 2]
    assert min(perfect) > 0.999
