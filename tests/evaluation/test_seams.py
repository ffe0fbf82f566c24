"""Seams are found where there are some."""

import math

import numpy as np
import pytest

from mitoseg.evaluation.figures import seam_ratio


def test_noise_has_no_seam():
    noise = np.random.default_rng(0).normal(size=(20, 60, 60))
    assert seam_ratio(noise, {1: [16, 32], 2: [16, 32]}) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifted_tiles_have_one(axis):
    noise = np.random.default_rng(0).normal(size=(20, 60, 60))
    np.moveaxis(noise, axis, 0)[8:] += 5
    assert seam_ratio(noise, {axis: [8]}) > 3
    assert seam_ratio(noise, {axis: [9]}) < 1


def test_without_borders_there_is_no_ratio():
    noise = np.random.default_rng(0).normal(size=(2, 6, 6))
    assert math.isnan(seam_ratio(noise, {2: [0, 6]}))
    assert math.isnan(seam_ratio(np.zeros((2, 6, 6)), {2: [3]}))
