"""Where tiles are drawn."""

import logging

import numpy as np
import pytest

from mitoseg.datasets import Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.sampling import EpochTiles
from mitoseg.volumes import ArrayVolume


def region(shape, box=None, foreground=((2, 5), (8, 16), (8, 16))):
    label_zyx = np.zeros(shape, np.uint8)
    label_zyx[tuple(slice(*f) for f in foreground)] = 1
    return Region(ArrayVolume(np.zeros(shape, np.uint8)), ArrayVolume(label_zyx), box or Box.of_shape(shape))


REGIONS = [region((6, 40, 50)), region((10, 30, 30), Box((2, 4, 6), (10, 30, 30)))]
TILE = (2, 16, 16)


def test_tiles_lie_inside_and_everywhere():
    draws = EpochTiles(REGIONS, TILE, epoch_tiles=60000, augment="dihedral_z", seed=3).draw(0)
    assert len(draws) == 60000
    for number, region_ in enumerate(REGIONS):
        start_n3 = draws.position_n4[draws.position_n4[:, 0] == number, 1:]
        last = np.array(region_.box.shape) - TILE
        np.testing.assert_array_equal(start_n3.min(0), 0)
        np.testing.assert_array_equal(start_n3.max(0), last)
        expected = np.prod(last + 1)
        total = sum(np.prod(np.array(r.box.shape) - TILE + 1) for r in REGIONS)
        assert len(start_n3) / 60000 == pytest.approx(expected / total, rel=0.05)
        middle = np.bincount(start_n3[:, 1])
        assert middle.min() > 0.7 * middle.mean()
    assert set(draws.symmetry_n.tolist()) == set(range(16))
    assert len(np.unique(draws.seed_n)) > 59000


def test_draws_follow_from_seed_and_epoch():
    make = EpochTiles(REGIONS, TILE, seed=1).draw
    again, other = EpochTiles(REGIONS, TILE, seed=1).draw, EpochTiles(REGIONS, TILE, seed=2).draw
    np.testing.assert_array_equal(make(4).position_n4, again(4).position_n4)
    assert not np.array_equal(make(4).position_n4, make(5).position_n4)
    assert not np.array_equal(make(4).position_n4, other(4).position_n4)


def test_an_epoch_has_as_many_voxels_as_the_regions():
    voxels = sum(r.box.size for r in REGIONS)
    assert len(EpochTiles(REGIONS, TILE)) == round(voxels / np.prod(TILE))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_share_of_the_tiles_holds_foreground(share):
    tiles = EpochTiles(REGIONS, TILE, foreground_share=share, epoch_tiles=400)
    holds = []
    for number, *start in tiles.draw(0).position_n4.tolist():
        r = REGIONS[number]
        first = np.array(r.box.start) + start
        part = tuple(slice(a, a + n) for a, n in zip(first, TILE, strict=True))
        holds.append(bool(r.label.read(Box.of_shape(r.label.shape))[part].any()))
        assert np.all(first + TILE <= r.box.stop)
    assert np.mean(holds) >= share
    assert all(holds[round(400 * (1 - share)) :])


def test_prior_is_that_of_the_labelled_voxels():
    r = region((4, 32, 32))
    label_zyx = r.label.read(r.box).copy()
    label_zyx[:, :8] = 255
    ignoring = Region(r.image, ArrayVolume(label_zyx), r.box)
    tiles = EpochTiles([ignoring], TILE)
    assert tiles.prior == pytest.approx(np.sum(label_zyx == 1) / np.sum(label_zyx != 255))
    assert tiles.counts == (np.sum(label_zyx == 0), np.sum(label_zyx == 1))


def test_no_tile_lies_where_nothing_is_labelled():
    """As in padding; and where everything is labelled, the draws are as ever."""
    wide = region((6, 96, 128))
    label_zyx = wide.label.read(wide.box).copy()
    label_zyx[:, 24:] = label_zyx[:, :, 60:] = label_zyx[5] = 255
    ignoring = Region(wide.image, ArrayVolume(label_zyx), wide.box)
    part = Region(wide.image, ArrayVolume(label_zyx), Box((0, 5, 3), (6, 96, 128)))
    draws = EpochTiles([wide, ignoring, part], TILE, epoch_tiles=3000, seed=1).draw(0)
    for r, box, everywhere in ((0, wide.box, True), (1, wide.box, False), (2, part.box, False)):
        start_n3 = draws.position_n4[draws.position_n4[:, 0] == r, 1:] + box.start
        assert len(start_n3) > 50
        if not everywhere:
            assert (start_n3 < np.array([5, 24 + 8, 60 + 8])).all()
    before = EpochTiles([wide], TILE, epoch_tiles=50, seed=1)
    expected = np.random.default_rng([1, 0, 2])
    np.testing.assert_array_equal(before.draw(0).position_n4, before._uniformly(50, expected))


def test_a_region_smaller_than_a_tile_is_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        tiles = EpochTiles(
            [region((1, 40, 40), foreground=((0, 1), (0, 9), (0, 9))), REGIONS[0]], TILE, foreground_share=0.5
        )
    assert "smaller than a tile of 2 x 16 x 16 voxels: it is left out" in caplog.text
    assert set(tiles.draw(0).position_n4[:, 0].tolist()) == {1}
    assert len(tiles) == round(REGIONS[0].box.size / np.prod(TILE))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tile": (2, 64, 64)}, "smaller than a tile"),
        ({"tile": (2, 16, 8)}, "must be square"),
        ({"augment": "cubic"}, "three equal sides"),
        ({"foreground_share": 1.5}, "share of the tiles"),
        ({"epoch_tiles": 0}, "too few epoch_tiles"),
        ({"seed": -1}, "negative seed"),
    ],
)
def test_mistakes_are_told(options, line):
    with pytest.raises(UserError, match=line):
        EpochTiles(REGIONS, **{"tile": TILE, **options})


@pytest.mark.parametrize("value", [0, 1])
def test_a_class_without_voxels_is_told(value):
    r = Region(
        ArrayVolume(np.zeros((4, 20, 20), np.uint8)),
        ArrayVolume(np.full((4, 20, 20), value, np.uint8)),
        Box.of_shape((4, 20, 20)),
    )
    with pytest.raises(UserError, match=r"no .* voxel in the training regions"):
        EpochTiles([r], TILE)
