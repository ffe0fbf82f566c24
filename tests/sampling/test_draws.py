"""What an epoch draws: how often, how turned, and the same again from the same seed."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitoseg.datasets import Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.sampling import BlockDataModule, EpochDraws
from mitoseg.sampling.positions import BlockRule, PositionTable
from mitoseg.volumes import ArrayVolume

COLUMNS = ("position_n4", "label_n", "angle_n", "flip_n")


def table(background, foreground, positions="grid", dropped=0):
    """A volume of one row of 4-pixel blocks per class."""
    order = np.random.default_rng(9).permutation([0] * background + [1] * foreground + [2] * dropped)
    label_zyx = np.array([0, 1, 255], np.uint8)[order].repeat(4)[None, None].repeat(4, 1)
    volume = ArrayVolume(label_zyx)
    region = Region(volume, volume, Box((0, 0, 0), label_zyx.shape))
    return PositionTable([region], BlockRule("majority" if positions == "grid" else "center", positions, block=4))


def times(draws, label):
    """How often each block of a class is drawn."""
    return np.unique(draws.position_n4[draws.label_n == label], axis=0, return_counts=True)[1]


@settings(max_examples=60, deadline=None)
@given(background=st.integers(1, 40), foreground=st.integers(1, 40), epoch=st.integers(0, 3))
def test_rotation_evens_the_classes(background, foreground, epoch):
    draws = EpochDraws(table(background, foreground), seed=2).draw(epoch)
    n = max(background, foreground)
    assert (draws.label_n == 0).sum() == (draws.label_n == 1).sum() == n
    rare = int(foreground <= background)
    m = min(background, foreground)
    assert set(times(draws, 1 - rare)) == {1}
    assert len(times(draws, rare)) == m
    assert set(times(draws, rare)) <= {n // m, -(-n // m)}
    assert (draws.angle_n[draws.label_n != rare] == 0).all()
    assert not draws.flip_n.any()
    assert draws.distinct() == 2 * n
    for block in np.unique(draws.position_n4[draws.label_n == rare], axis=0):
        angles = draws.angle_n[(draws.position_n4 == block).all(1)]
        assert sorted(angles[angles % 90 == 0]) == [0, 90, 180, 270][: len(angles)]


def test_random_angles_are_fresh_each_epoch():
    maker = EpochDraws(table(500, 7))
    angles = [a.angle_n[(a.label_n == 1) & (a.angle_n % 90 != 0)] for a in map(maker.draw, range(2))]
    assert len(angles[0]) == 500 - 4 * 7
    assert not np.intersect1d(*angles).size
    assert np.histogram(angles[0], 8, (0, 360))[0].min() > 30


@pytest.mark.parametrize("augment", ["none", "turns", "dihedral", "any_angle"])
@pytest.mark.parametrize("balance", ["rotate", "subsample", "none"])
@pytest.mark.parametrize("positions", ["grid", "any"])
def test_the_same_seed_draws_the_same(positions, balance, augment):
    def draw(seed, epoch):
        return EpochDraws(table(60, 9, positions), balance=balance, augment=augment, seed=seed).draw(epoch)

    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(draw(3, 5), column), getattr(draw(3, 5), column))
    if (balance, positions, augment) != ("none", "grid", "none"):
        for other in (draw(4, 5), draw(3, 6)):
            assert any((getattr(other, c) != getattr(draw(3, 5), c)).any() for c in COLUMNS)
    assert (draw(3, 5).angle_n >= 0).all()
    assert (draw(3, 5).angle_n < 360).all()


def test_labels_are_those_of_the_positions():
    for positions in ("grid", "any"):
        source = table(30, 11, positions, dropped=8)
        label = {tuple(p): c for c in (0, 1) for p in source.positions(source.members(c)).tolist()}
        for balance in ("rotate", "subsample", "none"):
            draws = EpochDraws(source, balance=balance, augment="dihedral").draw(1)
            assert [label[tuple(p)] for p in draws.position_n4.tolist()] == draws.label_n.tolist()


def test_subsampling_thins_the_larger_class_differently_each_epoch():
    maker = EpochDraws(table(300, 20), balance="subsample")
    first, second = maker.draw(0), maker.draw(1)
    assert len(first) == len(maker) == 40
    assert maker.share == 0.5
    assert set(times(first, 0)) == set(times(first, 1)) == {1}
    assert len(times(first, 1)) == 20
    assert (first.angle_n == 0).all()
    assert (first.position_n4[:20] != second.position_n4[:20]).any()


def test_without_balance_each_block_is_drawn_once():
    maker = EpochDraws(table(30, 12, dropped=5), balance="none")
    assert set(times(maker.draw(0), 0)) == set(times(maker.draw(0), 1)) == {1}
    assert len(maker.draw(0)) == len(maker) == 42
    assert maker.share == pytest.approx(12 / 42)


@pytest.mark.parametrize(("balance", "share"), [("rotate", 0.5), ("subsample", 0.5), ("none", 0.25)])
def test_any_position(balance, share):
    source = table(300, 100, "any")
    maker = EpochDraws(source, balance=balance, epoch_blocks=20_000)
    draws = maker.draw(0)
    assert len(draws) == len(maker) == 20_000
    assert maker.share == pytest.approx(share)
    assert draws.label_n.mean() == pytest.approx(share, abs=0.01 if balance == "none" else 1e-9)
    turned = draws.angle_n != 0
    assert turned[draws.label_n == 1].mean() == pytest.approx(float(balance == "rotate"), abs=0.01)
    assert not turned[draws.label_n == 0].any()
    assert len(EpochDraws(source, balance=balance)) == source.grid_blocks == 400


def test_the_background_can_be_turned_alike():
    draws = EpochDraws(table(403, 10), rotate_background=True).draw(0)
    kinds = [np.sort(np.where(a % 90 == 0, a, -1)) for a in (draws.angle_n[draws.label_n == c] for c in (0, 1))]
    np.testing.assert_array_equal(*kinds)  # as many of each quarter turn, as many random angles
    assert (kinds[0] == -1).sum() == 403 - 40
    everywhere = EpochDraws(table(403, 10, "any"), rotate_background=True).draw(0)
    assert (everywhere.angle_n % 90 != 0).mean() > 0.99


@pytest.mark.parametrize(
    ("augment", "angles", "flips"), [("turns", 4, 0), ("dihedral", 4, 0.5), ("any_angle", 2000, 0.5), ("none", 1, 0)]
)
def test_augmentation_is_the_same_for_both_classes(augment, angles, flips):
    draws = EpochDraws(table(1000, 1000), balance="none", augment=augment).draw(0)
    assert len(np.unique(draws.angle_n)) == pytest.approx(angles, rel=0.01)
    for c in (0, 1):
        assert draws.flip_n[draws.label_n == c].mean() == pytest.approx(flips, abs=0.06)
        assert (draws.angle_n[draws.label_n == c] < 180).mean() == pytest.approx(0.5 if angles > 1 else 1, abs=0.06)


def test_the_summary_is_plain_and_right():
    summary = json.loads(json.dumps(EpochDraws(table(436, 10, dropped=3)).summary()))
    expected = {"blocks_foreground": 10, "blocks_background": 436, "blocks_dropped": 3, "draws_distinct": 872}
    expected |= {"draws_foreground": 436, "draws_background": 436, "prior": 10 / 446, "batch_prior": 0.5}
    expected |= {"multiplicity_foreground": 43.6, "multiplicity_background": 1.0}
    assert summary.items() >= expected.items()
    assert "each mitochondria block is drawn 43.6 times" in BlockDataModule.description.format_map(summary)


def test_mistakes_are_told_in_one_line():
    cases = [
        ({"epoch_blocks": 100}, "epoch_blocks is for positions=any"),
        ({"seed": -1}, "negative seed"),
    ]
    for options, line in cases:
        with pytest.raises(UserError, match=line):
            EpochDraws(table(4, 2), **options)
    with pytest.raises(UserError, match="too few epoch_blocks"):
        EpochDraws(table(4, 2, "any"), epoch_blocks=1)
