"""Scores of stored probabilities against scikit-learn, however they are stored and cut."""

import json
import math

import numpy as np
import pytest
from scipy.special import logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, brier_score_loss, jaccard_score, log_loss, precision_recall_curve

from mitoseg.evaluation import decide, evaluate, pool_evaluations
from mitoseg.geometry import Box
from mitoseg.storage import plain
from mitoseg.volumes.base import ArrayVolume

SHAPE = (6, 40, 50)
KEYS = {
    *("average_precision", "expected_calibration_error", "adaptive_calibration_error", "negative_log_likelihood"),
    *("brier_score", "jaccard_foreground_oracle", "threshold_oracle"),
    *("precision_recall", "reliability", "reliability_adaptive"),
}


def made(seed=0, dtype=np.float32, ignored=0.1):
    """A stored prediction, its truth, and both as scikit-learn takes them, without ignored voxels."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(SHAPE) < 0.15).astype(np.uint8)
    probability = (1 / (1 + np.exp(-rng.normal(4.0 * truth - 3, 1.5)))).astype(np.float32)
    if np.dtype(dtype).kind == "u":
        scale = np.iinfo(dtype).max
        stored = np.round(probability * scale).astype(dtype)
        probability = np.clip(stored / scale, 0.25 / scale, 1 - 0.25 / scale)
        prediction = ArrayVolume(stored, metadata={"kind": "probability", "scale": scale})
    else:
        prediction = ArrayVolume(probability.astype(dtype))
    truth[rng.random(SHAPE) < ignored] = 255
    kept = truth != 255
    return prediction, ArrayVolume(truth, (5.0, 5.0, 5.0)), probability[kept], truth[kept]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8, np.uint16])
def test_scores_agree_with_scikit_learn(dtype):
    prediction, truth, p, y = made(dtype=dtype)
    found = evaluate(prediction, truth, bands=[])
    assert found["average_precision"] == pytest.approx(average_precision_score(y, p), abs=1e-3)
    assert found["brier_score"] == pytest.approx(brier_score_loss(y, p), abs=1e-4)
    assert found["negative_log_likelihood"] == pytest.approx(log_loss(y, p.astype(np.float64)), abs=1e-4)
    if dtype != np.uint8:  # each edge between two of 15 bins is one of 255 values, which falls on either side
        share, confidence = calibration_curve(y, p, n_bins=15)
        assert found["reliability"]["share"] == pytest.approx(share, abs=0.01)
        assert found["reliability"]["confidence"] == pytest.approx(confidence, abs=2e-3)
    at = np.clip((p * 15).astype(int), 0, 14)
    error = sum(abs((y - p)[at == b].sum()) for b in range(15)) / len(y)
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_the_curve_agrees_with_scikit_learn(dtype):
    prediction, truth, p, y = made(1, dtype)
    points = evaluate(prediction, truth, bands=[])["precision_recall"]
    precision, recall, _ = precision_recall_curve(y, p)
    assert points["recall"][0] == 1  # reached at many thresholds, of which the highest is given
    theirs = np.interp(points["recall"][1:], recall[::-1], precision[::-1])
    assert theirs == pytest.approx(points["precision"][1:], abs=0.01)
    assert (np.diff(points["recall"]) <= 0).all()
    assert (np.diff(points["threshold"]) > 0).all()


def test_the_oracle_is_the_best_of_all_thresholds():
    prediction, truth, p, y = made(2)
    found = evaluate(prediction, truth, bands=[])
    best = max(jaccard_score(y, p >= t) for t in np.linspace(0.01, 0.99, 197))
    assert found["jaccard_foreground_oracle"] == pytest.approx(best, abs=2e-3)
    at_best = evaluate(prediction, truth, bands=[], threshold=found["threshold_oracle"])
    assert at_best["jaccard_foreground"] == pytest.approx(found["jaccard_foreground_oracle"], abs=1e-3)
    assert found["jaccard_foreground_oracle"] > found["jaccard_foreground"]


def test_a_perfectly_calibrated_map_has_almost_no_error():
    rng = np.random.default_rng(0)
    p = rng.random((20, 100, 100)).astype(np.float32)
    truth = (rng.random(p.shape) < p).astype(np.uint8)
    found = evaluate(ArrayVolume(p), ArrayVolume(truth), bands=[])
    assert found["expected_calibration_error"] < 0.01
    assert found["adaptive_calibration_error"] < 0.01


def test_certain_probabilities_stay_finite():
    p = np.array([0.0, 1.0, 0.0, 1.0], np.float32).reshape(1, 1, 4)
    truth = np.array([0, 1, 1, 0], np.uint8).reshape(1, 1, 4)
    found = evaluate(ArrayVolume(p), ArrayVolume(truth))
    assert found["negative_log_likelihood"] == pytest.approx(10, abs=0.01)  # half of them 20 nats wrong
    assert found["brier_score"] == pytest.approx(0.5)


def test_the_end_values_of_bytes_stand_for_half_a_step():
    v = ArrayVolume(np.array([0, 51, 255], np.uint8).reshape(1, 1, 3), metadata={"kind": "probability", "scale": 255})
    expected = logit([0.25 / 255, 0.2, 1 - 0.25 / 255])
    assert decide(v).log_odds(v.read()).ravel() == pytest.approx(expected, rel=1e-5)


def test_slabs_columns_and_halves_are_the_whole():
    prediction, truth, *_ = made(3)
    whole = evaluate(prediction, truth, slabs=6)
    assert plain(evaluate(prediction, truth, slabs=6, depth=2)) == plain(whole)
    crops = [Box((0, 0, 0), (2, 40, 50)), Box((2, 0, 0), (6, 40, 50))]
    pooled = pool_evaluations([evaluate(prediction, truth, crop=crop, slabs=6) for crop in crops])
    assert {key: pooled[key] for key in KEYS} == {key: whole[key] for key in KEYS}


def test_masks_have_no_such_scores_and_a_file_has_no_histogram(tmp_path):
    prediction, truth, *_ = made(4)
    found = evaluate(prediction, truth)
    assert set(found) >= KEYS
    for kind in ("mask", "instances"):
        assert not KEYS & set(evaluate(prediction, truth, kind=kind))
    assert not KEYS & set(pool_evaluations([found, evaluate(prediction, truth, kind="mask")]))
    read = json.loads(json.dumps(plain(found)))
    pooled = pool_evaluations([read, read])
    assert not KEYS & set(pooled)
    assert pooled["jaccard_foreground"] == found["jaccard_foreground"]


@pytest.mark.parametrize("value", [0, 255])
def test_one_class_or_none_is_no_error(value):
    prediction, *_ = made(5)
    found = evaluate(prediction, ArrayVolume(np.full(SHAPE, value, np.uint8)))
    for key in ("average_precision", "jaccard_foreground_oracle"):
        assert math.isnan(found[key])
    assert found["precision_recall"]["recall"] == []
    assert math.isnan(found["brier_score"]) == (value == 255)
    assert len(found["reliability"]["voxels"]) == (0 if value == 255 else 15)
    json.dumps(plain(found))
