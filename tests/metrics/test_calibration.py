"""Calibration against scikit-learn's logistic regression, and known answers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from mitoseg.errors import UserError
from mitoseg.metrics.calibration import Calibration, fit_calibration, negative_log_likelihood, prior_shift
from mitoseg.metrics.histogram import BINS, CENTRES, logit_histogram
from mitoseg.metrics.reliability import expected_calibration_error

finite = st.floats(-50, 50)


def draw(seed, temperature, bias, n=20_000):
    """Log-odds and truths for which the given temperature and bias are right."""
    rng = np.random.default_rng(seed)
    logits = np.clip(rng.normal(0.0, 4.0, n), -19, 19)
    logits = np.floor(logits * 100) / 100 + 0.005
    truth = rng.random(n) < expit(logits / temperature + bias)
    return logits, truth.astype(np.uint8)


@pytest.mark.parametrize("shift", [0.0, -2.9])
@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (2.5, -1.0), (0.6, 1.5), (8.0, -3.0)])
def test_fit_agrees_with_logistic_regression(temperature, bias, shift):
    logits, truth = draw(1, temperature, bias)
    fit = fit_calibration(logit_histogram(logits, truth), shift)
    model = LogisticRegression(C=np.inf, tol=1e-10).fit((logits + shift)[:, None], truth)
    assert 1 / fit.temperature == pytest.approx(model.coef_[0, 0], rel=1e-3)
    assert fit.bias == pytest.approx(model.intercept_[0], abs=1e-3)
    assert fit.prior_shift == shift
    assert fit.temperature == pytest.approx(temperature, rel=0.1)


def test_fit_lowers_the_loss_and_the_calibration_error():
    hist = logit_histogram(*draw(2, 3.0, -2.0))
    fit = fit_calibration(hist)
    assert negative_log_likelihood(hist, fit) < negative_log_likelihood(hist, Calibration())
    assert expected_calibration_error(hist, fit) < 0.02 < expected_calibration_error(hist, Calibration())


def test_negative_log_likelihood_by_hand():
    hist = np.zeros((2, BINS), np.int64)
    hist[0, BINS // 2], hist[1, BINS // 2] = 3, 1
    p = expit(CENTRES[BINS // 2] + 1.0)
    expected = -(3 * math.log(1 - p) + math.log(p)) / 4
    assert negative_log_likelihood(hist, Calibration(bias=1.0)) == pytest.approx(expected)


def test_negative_log_likelihood_without_voxels():
    assert math.isnan(negative_log_likelihood(np.zeros((2, BINS), np.int64), Calibration()))


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


def test_saturated_logits_fit():
    """Sums over 10^8 voxels at the ends of the histogram, as a long training gives them."""
    hist = np.zeros((2, BINS), np.int64)
    hist[0, 0], hist[1, -1], hist[0, 2300], hist[1, 1900] = 10**8, 10**7, 10**5, 10**5
    fit = fit_calibration(hist, -2.9)
    assert negative_log_likelihood(hist, fit) <= negative_log_likelihood(hist, Calibration(-2.9))


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), finite)
def test_prior_shift_moves_the_odds_by_the_ratio_of_the_priors(pi, pi_batches, likelihood):
    """A net trained at ``pi_batches`` says likelihood + its prior; corrected, it says likelihood + the true one."""
    corrected = Calibration(prior_shift=prior_shift(pi, pi_batches)).apply(likelihood + float(logit(pi_batches)))
    assert corrected == pytest.approx(likelihood + float(logit(pi)), abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 1.0, math.nan, -0.1])
def test_prior_shift_needs_both_classes(share):
    with pytest.raises(UserError, match="share"):
        prior_shift(share, 0.5)
    with pytest.raises(UserError, match="share"):
        prior_shift(0.5, share)


@given(finite, st.floats(0.01, 50), finite)
def test_plain_data_round_trip(shift, temperature, bias):
    calibration = Calibration(shift, temperature, bias)
    assert Calibration.from_dict(calibration.to_dict()) == calibration


@pytest.mark.parametrize("data", [{"temperature": 0}, {"temperature": -1}, {"bias": math.nan}, {"slope": 1}])
def test_bad_data_is_one_line(data):
    with pytest.raises(UserError, match="not a calibration"):
        Calibration.from_dict(data)


def test_apply_takes_floats_arrays_and_tensors_and_keeps_the_order():
    calibration = Calibration(-3.0, 2.0, 0.5)
    x = np.linspace(-5, 5, 11, dtype=np.float32)
    assert calibration.apply(x).dtype == np.float32
    assert np.allclose(calibration.apply(torch.from_numpy(x)).numpy(), calibration.apply(x))
    assert calibration.apply(1.0) == -0.5
    assert (np.diff(calibration.apply(x)) > 0).all()
