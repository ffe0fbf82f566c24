"""Reliability, calibration errors and the Brier score against scikit-learn, torchmetrics, and by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import binary_calibration_error

from mitoseg.metrics import Calibration, negative_log_likelihood
from mitoseg.metrics.histogram import BINS, logit_histogram
from mitoseg.metrics.reliability import brier_score, expected_calibration_error, reliability_bins

NOTHING = np.zeros((2, BINS), np.int64)


def draw(seed, temperature=2.0, bias=-1.0, n=5000):
    """Log-odds in the middle of their bins, and truths for which temperature and bias would be right."""
    rng = np.random.default_rng(seed)
    logits = np.floor(np.clip(rng.normal(-1.0, 4.0, n), -19, 19) * 100) / 100 + 0.005
    truth = (rng.random(n) < expit(logits / temperature + bias)).astype(np.uint8)
    return logits, truth


@pytest.mark.parametrize("bins", [5, 15])
@pytest.mark.parametrize("calibration", [Calibration(), Calibration(-1.0, 2.0, 0.3)])
def test_expected_calibration_error_agrees_with_torchmetrics(calibration, bins):
    logits, truth = draw(3)
    ours = expected_calibration_error(logit_histogram(logits, truth), calibration, bins=bins)
    probability = torch.from_numpy(expit(calibration.apply(logits)))
    theirs = binary_calibration_error(probability, torch.from_numpy(truth).int(), n_bins=bins)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("bins", [7, 15])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_diagram_agrees_with_scikit_learn(adaptive, bins):
    logits, truth = draw(4, n=2000)
    if adaptive:  # scikit-learn tears equal values apart at quantiles, so there are none, and as many in each bin
        logits = np.unique(logits)
        truth = truth[: len(logits) // bins * bins]
        logits = logits[: len(truth)]
    found = reliability_bins(logit_histogram(logits, truth), bins=bins, adaptive=adaptive)
    strategy = "quantile" if adaptive else "uniform"
    share, confidence = calibration_curve(truth, expit(logits), n_bins=bins, strategy=strategy)
    assert found.share == pytest.approx(share, abs=0.02 if adaptive else 1e-9)  # a quantile falls between two values
    assert found.confidence == pytest.approx(confidence, abs=0.01 if adaptive else 1e-6)
    assert found.voxels.sum() == len(truth)


def test_adaptive_bins_hold_equally_many():
    logits, truth = draw(5, n=30_000)
    found = reliability_bins(logit_histogram(logits, truth), adaptive=True)
    assert len(found.voxels) == 15
    assert found.voxels == pytest.approx(2000, abs=200)
    assert (np.diff(found.confidence) > 0).all()


def test_by_hand():
    """Eight voxels of probability about 0.1, of which one is foreground, and two of about 0.9, both foreground."""
    logits, truth = [-2.195] * 8 + [2.195] * 2, [1] + [0] * 7 + [1, 1]
    hist = logit_histogram(np.array(logits), np.array(truth))
    found = reliability_bins(hist)
    assert found.voxels.tolist() == [8, 2]
    assert found.share.tolist() == [1 / 8, 1]
    assert found.confidence == pytest.approx([0.1, 0.9], abs=1e-3)
    assert found.error == pytest.approx(0.8 * 0.025 + 0.2 * 0.1, abs=1e-3)
    assert brier_score(hist) == pytest.approx((0.81 + 7 * 0.01 + 2 * 0.01) / 10, abs=1e-3)


@pytest.mark.parametrize("calibration", [Calibration(), Calibration(-1.0, 2.0, 0.3)])
def test_brier_and_likelihood_agree_with_scikit_learn(calibration):
    logits, truth = draw(6)
    hist, probability = logit_histogram(logits, truth), expit(calibration.apply(logits))
    assert brier_score(hist, calibration) == pytest.approx(brier_score_loss(truth, probability))
    assert negative_log_likelihood(hist, calibration) == pytest.approx(log_loss(truth, probability))


def test_all_of_one_value_is_one_bin():
    hist = logit_histogram(np.zeros(9), np.ones(9))
    for adaptive in (False, True):
        found = reliability_bins(hist, adaptive=adaptive)
        assert found.voxels.tolist() == [9]
        assert found.error == pytest.approx(0.5, abs=0.002)


def test_without_voxels_there_is_nothing():
    assert math.isnan(expected_calibration_error(NOTHING))
    assert math.isnan(expected_calibration_error(NOTHING, adaptive=True))
    assert math.isnan(brier_score(NOTHING))
    assert len(reliability_bins(NOTHING).voxels) == 0
