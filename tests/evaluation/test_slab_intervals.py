"""Intervals over z-slabs: which slices a slab holds, and what a crop of few slices gives."""

import math
from itertools import pairwise

import numpy as np
import pytest

from mitoseg.errors import UserError
from mitoseg.evaluation import Bootstrap, evaluate, pool_evaluations
from mitoseg.geometry import Box
from mitoseg.metrics import Counts, bootstrap_intervals, count
from mitoseg.volumes.base import ArrayVolume


def pair(depth=13, seed=0):
    rng = np.random.default_rng(seed)
    truth = (rng.random((depth, 20, 20)) < 0.3).astype(np.uint8)
    guess = np.where(rng.random(truth.shape) < 0.2, 1 - truth, truth).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    return ArrayVolume(guess, metadata={"kind": "mask"}), ArrayVolume(truth, (5.0, 5.0, 5.0))


@pytest.mark.parametrize("depth", [None, 2])
@pytest.mark.parametrize("slabs", [1, 2, 4, 8, 13])
def test_slabs_are_equal_runs_of_slices(slabs, depth):
    guess, truth = pair()
    found = evaluate(guess, truth, slabs=slabs, depth=depth)
    ends = [13 * i // slabs for i in range(slabs + 1)]
    expected = [count(guess.read()[a:b] == 1, truth.read()[a:b]) for a, b in pairwise(ends)]
    assert [Counts(**counts) for counts in found["slab_counts"]] == expected
    assert sum(expected, Counts()) == Counts(**found["counts"])
    if slabs > 1:
        ends = {name: list(pair) for name, pair in bootstrap_intervals(expected).items()}
        assert found["interval"] == ends


def test_a_crop_and_as_many_slabs_as_slices():
    guess, truth = pair()
    found = evaluate(guess, truth, crop=Box((4, 0, 0), (7, 20, 20)), slabs=8)
    expected = [count(guess.read()[z] == 1, truth.read()[z]) for z in (4, 5, 6)]
    assert [Counts(**counts) for counts in found["slab_counts"]] == expected


def test_one_slice_has_no_interval_and_no_error():
    found = evaluate(*pair(depth=1))
    assert len(found["slab_counts"]) == 1
    assert all(math.isnan(end) for end in found["interval"]["dice"])
    assert found["dice"] > 0


def test_pooled_volumes_lay_their_slabs_side_by_side():
    parts = [evaluate(*pair(seed=seed), slabs=4, bootstrap=Bootstrap(300, 7)) for seed in (0, 1)]
    pooled = pool_evaluations(parts)
    assert pooled["slab_counts"] == parts[0]["slab_counts"] + parts[1]["slab_counts"]
    assert pooled["bootstrap"] == {"resamples": 300, "seed": 7, "level": 0.95}
    counts = [Counts(**counts) for counts in pooled["slab_counts"]]
    assert pooled["interval"]["recall"] == list(bootstrap_intervals(counts, resamples=300, seed=7)["recall"])


def test_no_draws_no_intervals():
    found = evaluate(*pair(), bootstrap=Bootstrap(0))
    assert found["interval"] == {}
    assert len(found["slab_counts"]) == 8


@pytest.mark.parametrize("options", [{"resamples": -1}, {"seed": -1}, {"resamples": 1.5}, {"seed": True}])
def test_bad_draws_are_one_line(options):
    with pytest.raises(UserError, match="not a whole number"):
        Bootstrap(**options)
