"""Several answers to one: against numpy, and through the predictor."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from small_networks import SmallBlock, ensemble, grey, member, predict, shaken

from mitoseg.errors import UserError
from mitoseg.inference.views import CONSENSUS, check_answers, gather, symmetries
from mitoseg.metrics import Calibration

CALIBRATION = Calibration(-1.0, 1.5, 0.3)


def gathered(save, consensus, maps):
    return gather(map(torch.from_numpy, maps), save, consensus, CALIBRATION).numpy()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_against_numpy(count):
    maps = np.random.default_rng(count).normal(0, 3, (count, 3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(gathered("probability", "mean", maps), maps.mean(0), atol=1e-6)
    np.testing.assert_allclose(gathered("probability", "median", maps), np.median(maps, 0), atol=1e-6)
    deviation = expit(CALIBRATION.apply(maps.astype(float))).std(0)
    np.testing.assert_allclose(gathered("uncertainty", "mean", maps), deviation, atol=1e-6)


def test_small_deviations_keep_their_digits():
    maps = (5 + np.random.default_rng(0).normal(0, 1e-3, (8, 1, 1, 50))).astype(np.float32)
    expected = expit(CALIBRATION.apply(maps.astype(float))).std(0)
    np.testing.assert_allclose(gathered("uncertainty", "mean", maps), expected, rtol=0.01)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 2.0])
def test_the_median_of_an_odd_number_is_a_vote(threshold):
    maps = np.random.default_rng(1).normal(0, 3, (3, 4, 6, 5)).astype(np.float32)
    votes = (maps >= threshold).sum(0) >= 2
    np.testing.assert_array_equal(gathered("mask", "median", maps) >= threshold, votes)


def each_view(network, image, name):
    """What the network says of each turned volume, turned back."""
    found = []
    for symmetry in symmetries(name):
        turned = torch.from_numpy(predict(network, symmetry.turn_array(image)))
        found.append(symmetry.turn_tensor_back(turned).numpy())
    return np.stack(found)


@pytest.mark.parametrize("tta", ["flips", "axes"])
def test_the_deviation_is_over_views(tta):
    network, image = shaken(SmallBlock()), grey((10, 12, 9))
    maps = each_view(network, image, tta)
    options = {"tta": tta, "calibration": CALIBRATION}
    deviation = predict(network, image, (4, 8, 9), save="uncertainty", **options)
    np.testing.assert_allclose(deviation, expit(CALIBRATION.apply(maps)).std(0), atol=1e-5)
    median = predict(network, image, (4, 8, 9), consensus="median", **options)
    np.testing.assert_allclose(median, np.median(maps, 0), atol=1e-5)


@pytest.mark.parametrize("tta", ["none", "flips"])
def test_the_deviation_is_over_members_and_views(tta):
    networks, image = [shaken(SmallBlock(), seed) for seed in (1, 2, 3)], grey((3, 12, 11))
    both = ensemble(networks, [member(network) for network in networks])
    maps = np.concatenate([each_view(network, image, tta) for network in networks])
    deviation = predict(both, image, save="uncertainty", tta=tta)
    np.testing.assert_allclose(deviation, expit(maps).std(0), atol=1e-5)
    np.testing.assert_allclose(predict(both, image, consensus="median", tta=tta), np.median(maps, 0), atol=1e-5)


def test_bytes_hold_255_times_the_deviation():
    network, image = shaken(SmallBlock()), grey((2, 12, 11))
    options = {"save": "uncertainty", "tta": "flips"}
    exact = predict(network, image, **options)
    coarse = predict(network, image, dtype=np.dtype(np.uint8), **options)
    assert coarse.dtype == np.uint8
    np.testing.assert_allclose(coarse / 255, exact, atol=0.5 / 255 + 1e-6)
    assert 0 < exact.max() <= 0.5


def test_one_answer_has_no_deviation():
    with pytest.raises(UserError, match=r"here there is: 1; give tta=flips or an ensemble"):
        predict(shaken(SmallBlock()), grey((2, 12, 11)), save="uncertainty")
    for consensus in CONSENSUS:
        check_answers("probability", consensus, 1)
    with pytest.raises(UserError, match="no such consensus: 'vote'; choose one of mean, median"):
        check_answers("mask", "vote", 3)
