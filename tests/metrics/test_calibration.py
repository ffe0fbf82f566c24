"""Calibration and what it is measured by, against scikit-learn, torchmetrics, and known answers."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import binary_calibration_error

from mitoseg.errors import UserError
from mitoseg.metrics.calibration import (
    Calibration,
    brier_score,
    fit_calibration,
    negative_log_likelihood,
    prior_shift,
    reliability_bins,
)
from mitoseg.metrics.histogram import BINS, CENTRES, logit_histogram

NOTHING = np.zeros((2, BINS), np.int64)
finite = st.floats(-50, 50)


def draw(seed, temperature=2.0, bias=-1.0, n=5000, mean=-1.0):
    """Log-odds in the middle of their bins, and truths for which temperature and bias are right."""
    rng = np.random.default_rng(seed)
    logits = np.floor(np.clip(rng.normal(mean, 4.0, n), -19, 19) * 100) / 100 + 0.005
    return logits, (rng.random(n) < expit(logits / temperature + bias)).astype(np.uint8)


@pytest.mark.parametrize("shift", [0.0, -2.9])
@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (2.5, -1.0), (0.6, 1.5), (8.0, -3.0)])
def test_fit_agrees_with_logistic_regression(temperature, bias, shift):
    logits, truth = draw(1, temperature, bias, 20_000, mean=0.0)
    fit = fit_calibration(logit_histogram(logits, truth), shift)
    model = LogisticRegression(C=np.inf, tol=1e-10).fit((logits + shift)[:, None], truth)
    assert 1 / fit.temperature == pytest.approx(model.coef_[0, 0], rel=1e-3)
    assert fit.bias == pytest.approx(model.intercept_[0], abs=1e-3)
    assert fit.prior_shift == shift
    assert fit.temperature == pytest.approx(temperature, rel=0.1)


def test_fit_lowers_the_loss_and_the_calibration_error_with_saturated_log_odds_too():
    hist = logit_histogram(*draw(2, 3.0, -2.0, 20_000, mean=0.0))
    fit = fit_calibration(hist)
    assert negative_log_likelihood(hist, fit) < negative_log_likelihood(hist)
    assert reliability_bins(hist, fit).error < 0.02 < reliability_bins(hist).error
    hist = NOTHING.copy()  # sums over 10^8 voxels at the ends of the histogram, as a long training gives them
    hist[0, 0], hist[1, -1], hist[0, 2300], hist[1, 1900] = 10**8, 10**7, 10**5, 10**5
    fit = fit_calibration(hist, -2.9)
    assert negative_log_likelihood(hist, fit) <= negative_log_likelihood(hist, Calibration(-2.9))


@pytest.mark.parametrize(
    ("logits", "truth"),
    [
        ([], []),
        ([1.0, 2.0], [1, 1]),
        ([1.0, 2.0], [0, 0]),
        ([-1.0, 1.0], [0, 1]),
        ([3.0, 3.0, -3.0, -3.0, 0.0, 0.0], [0, 0, 1, 1, 0, 1]),
        ([1.0, 1.0, 1.0], [0, 0, 1]),
        ([30.0, -30.0] * 50, [0, 1] * 50),
    ],
)
def test_what_determines_nothing_leaves_the_shift_alone(logits, truth):
    hist = logit_histogram(np.array(logits), np.array(truth))
    assert fit_calibration(hist, -1.5) == Calibration(prior_shift=-1.5)


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), finite)
def test_prior_shift_moves_the_odds_by_the_ratio_of_the_priors(pi, pi_batches, likelihood):
    """A net trained at ``pi_batches`` says likelihood + its prior; corrected, it says likelihood + the true one."""
    corrected = Calibration(prior_shift=prior_shift(pi, pi_batches)).apply(likelihood + float(logit(pi_batches)))
    assert corrected == pytest.approx(likelihood + float(logit(pi)), abs=1e-9)


@given(finite, st.floats(0.01, 50), finite)
def test_plain_data_round_trip(shift, temperature, bias):
    calibration = Calibration(shift, temperature, bias)
    assert Calibration(**asdict(calibration)) == calibration


def test_bad_data_is_one_line():
    for data in ({"temperature": 0}, {"temperature": -1}, {"bias": math.nan}):
        with pytest.raises(UserError, match="not a calibration"):
            Calibration(**data)
    for share in (0.0, 1.0, math.nan, -0.1):
        for pair in ((share, 0.5), (0.5, share)):
            with pytest.raises(UserError, match="fraction"):
                prior_shift(*pair)


def test_apply_takes_floats_arrays_and_tensors_and_keeps_the_order():
    calibration = Calibration(-3.0, 2.0, 0.5)
    x = np.linspace(-5, 5, 11, dtype=np.float32)
    assert calibration.apply(x).dtype == np.float32
    assert np.allclose(calibration.apply(torch.from_numpy(x)).numpy(), calibration.apply(x))
    assert calibration.apply(1.0) == -0.5
    assert (np.diff(calibration.apply(x)) > 0).all()


@pytest.mark.parametrize("calibration", [Calibration(), Calibration(-1.0, 2.0, 0.3)])
def test_errors_agree_with_torchmetrics_and_scikit_learn(calibration):
    for seed, bins in ((3, 5), (3, 15), (6, 15)):
        logits, truth = draw(seed)
        hist, probability = logit_histogram(logits, truth), expit(calibration.apply(logits))
        theirs = binary_calibration_error(torch.from_numpy(probability), torch.from_numpy(truth).int(), n_bins=bins)
        assert reliability_bins(hist, calibration, bins=bins).error == pytest.approx(float(theirs), abs=1e-6)
        assert brier_score(hist, calibration) == pytest.approx(brier_score_loss(truth, probability))
        assert negative_log_likelihood(hist, calibration) == pytest.approx(log_loss(truth, probability))


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
    hist = np.zeros((2, BINS), np.int64)
    hist[0, BINS // 2], hist[1, BINS // 2] = 3, 1
    p = expit(CENTRES[BINS // 2] + 1.0)
    expected = -(3 * math.log(1 - p) + math.log(p)) / 4
    assert negative_log_likelihood(hist, Calibration(bias=1.0)) == pytest.approx(expected)


@pytest.mark.parametrize("adaptive", [False, True])
def test_equally_many_in_a_bin_one_value_in_one_and_without_voxels_there_is_nothing(adaptive):
    if adaptive:
        found = reliability_bins(logit_histogram(*draw(5, n=30_000)), adaptive=True)
        assert len(found.voxels) == 15
        assert found.voxels == pytest.approx(2000, abs=200)
        assert (np.diff(found.confidence) > 0).all()
    found = reliability_bins(logit_histogram(np.zeros(9), np.ones(9)), adaptive=adaptive)
    assert found.voxels.tolist() == [9]
    assert found.error == pytest.approx(0.5, abs=0.002)
    empty = reliability_bins(NOTHING, adaptive=adaptive)
    assert len(empty.voxels) == 0
    assert math.isnan(empty.error)
    assert math.isnan(brier_score(NOTHING))
    assert math.isnan(negative_log_likelihood(NOTHING))
