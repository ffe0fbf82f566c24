"""What an epoch draws of blocks and tiles, in which order, and the batches and validation slices that are iterated."""

import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_regions import region

from mitoseg.datasets import Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.sampling import BlockDataModule, BlockSampler
from mitoseg.sampling.datamodule import SliceLoader
from mitoseg.sampling.draws import EpochDraws, EpochLoader, EpochTiles
from mitoseg.sampling.positions import BlockRule, PositionTable
from mitoseg.volumes import ArrayVolume, Normalization


def table(background, foreground, positions="grid", dropped=0):
    """A volume of one row of 4-pixel blocks per class."""
    order = np.random.default_rng(9).permutation([0] * background + [1] * foreground + [2] * dropped)
    label_zyx = np.array([0, 1, 255], np.uint8)[order].repeat(4)[None, None].repeat(4, 1)
    return PositionTable(
        [region(None, label_zyx)], BlockRule("majority" if positions == "grid" else "center", positions, block=4)
    )


def times(draws, label):
    """How often each block of a class is drawn."""
    return np.unique(draws.position_n4[draws.columns["label"] == label], axis=0, return_counts=True)[1]


@settings(max_examples=60, deadline=None)
@given(background=st.integers(1, 40), foreground=st.integers(1, 40), epoch=st.integers(0, 3))
def test_rotation_evens_the_classes(background, foreground, epoch):
    maker = EpochDraws(table(background, foreground), seed=2)
    draws = maker.draw(epoch)
    n = max(background, foreground)
    assert (draws.columns["label"] == 0).sum() == (draws.columns["label"] == 1).sum() == n
    rare = int(foreground <= background)
    m = min(background, foreground)
    assert set(times(draws, 1 - rare)) == {1}
    assert len(times(draws, rare)) == m
    assert set(times(draws, rare)) <= {n // m, -(-n // m)}
    assert (draws.columns["angle_b"][draws.columns["label"] != rare] == 0).all()
    assert not draws.columns["flip_b"].any()
    assert maker.summary()["draws_distinct"] == 2 * n
    for block in np.unique(draws.position_n4[draws.columns["label"] == rare], axis=0):
        angles = draws.columns["angle_b"][(draws.position_n4 == block).all(1)]
        assert sorted(angles[angles % 90 == 0]) == [0, 90, 180, 270][: len(angles)]


def test_random_angles_are_fresh_each_epoch():
    maker = EpochDraws(table(500, 7))
    angles = [
        a.columns["angle_b"][(a.columns["label"] == 1) & (a.columns["angle_b"] % 90 != 0)]
        for a in map(maker.draw, range(2))
    ]
    assert len(angles[0]) == 500 - 4 * 7
    assert not np.intersect1d(*angles).size
    assert np.histogram(angles[0], 8, (0, 360))[0].min() > 30


@pytest.mark.parametrize("augment", ["none", "turns", "dihedral", "any_angle"])
@pytest.mark.parametrize("balance", ["rotate", "subsample", "none"])
@pytest.mark.parametrize("positions", ["grid", "any"])
def test_the_same_seed_draws_the_same(positions, balance, augment):
    def draw(seed, epoch):
        return EpochDraws(table(60, 9, positions), balance=balance, augment=augment, seed=seed).draw(epoch)

    first, again, others = draw(3, 5), draw(3, 5), (draw(4, 5), draw(3, 6))
    np.testing.assert_equal(vars(first), vars(again))
    if (balance, positions, augment) != ("none", "grid", "none"):
        for other in others:
            differ = [(column != first.columns[name]).any() for name, column in other.columns.items()]
            assert any(differ) or (other.position_n4 != first.position_n4).any()
    assert ((first.columns["angle_b"] >= 0) & (first.columns["angle_b"] < 360)).all()


def test_labels_are_those_of_the_positions():
    for positions in ("grid", "any"):
        source = table(30, 11, positions, dropped=8)
        label = {tuple(p): c for c in (0, 1) for p in source.positions(source.members(c)).tolist()}
        for balance in ("rotate", "subsample", "none"):
            draws = EpochDraws(source, balance=balance, augment="dihedral").draw(1)
            assert [label[tuple(p)] for p in draws.position_n4.tolist()] == draws.columns["label"].tolist()


def test_each_block_is_drawn_once_without_balance_or_where_it_is_rare():
    maker = EpochDraws(table(300, 20), balance="subsample")
    first, second = maker.draw(0), maker.draw(1)
    assert len(first) == len(maker) == 40
    assert maker.share == 0.5
    assert (first.columns["angle_b"] == 0).all()
    assert (first.position_n4[:20] != second.position_n4[:20]).any()
    plain = EpochDraws(table(30, 12, dropped=5), balance="none")
    assert len(plain.draw(0)) == len(plain) == 42
    assert plain.share == pytest.approx(12 / 42)
    for draws, rare in ((first, 20), (plain.draw(0), 12)):
        assert set(times(draws, 0)) == set(times(draws, 1)) == {1}
        assert len(times(draws, 1)) == rare


@pytest.mark.parametrize(("balance", "share"), [("rotate", 0.5), ("subsample", 0.5), ("none", 0.25)])
def test_any_position(balance, share):
    source = table(300, 100, "any")
    maker = EpochDraws(source, balance=balance, epoch_blocks=20_000)
    draws = maker.draw(0)
    assert len(draws) == len(maker) == 20_000
    assert maker.share == pytest.approx(share)
    assert draws.columns["label"].mean() == pytest.approx(share, abs=0.01 if balance == "none" else 1e-9)
    turned = draws.columns["angle_b"] != 0
    assert turned[draws.columns["label"] == 1].mean() == pytest.approx(float(balance == "rotate"), abs=0.01)
    assert not turned[draws.columns["label"] == 0].any()
    assert len(EpochDraws(source, balance=balance)) == source.grid_blocks == 400


def test_the_background_can_be_turned_alike():
    draws = EpochDraws(table(403, 10), rotate_background=True).draw(0)
    kinds = [
        np.sort(np.where(a % 90 == 0, a, -1))
        for a in (draws.columns["angle_b"][draws.columns["label"] == c] for c in (0, 1))
    ]
    np.testing.assert_array_equal(*kinds)  # as many of each quarter turn, as many random angles
    assert (kinds[0] == -1).sum() == 403 - 40
    everywhere = EpochDraws(table(403, 10, "any"), rotate_background=True).draw(0)
    assert (everywhere.columns["angle_b"] % 90 != 0).mean() > 0.99


@pytest.mark.parametrize(
    ("augment", "angles", "flips"), [("turns", 4, 0), ("dihedral", 4, 0.5), ("any_angle", 2000, 0.5), ("none", 1, 0)]
)
def test_augmentation_is_the_same_for_both_classes(augment, angles, flips):
    draws = EpochDraws(table(1000, 1000), balance="none", augment=augment).draw(0)
    assert len(np.unique(draws.columns["angle_b"])) == pytest.approx(angles, rel=0.01)
    for c in (0, 1):
        assert draws.columns["flip_b"][draws.columns["label"] == c].mean() == pytest.approx(flips, abs=0.06)
        assert (draws.columns["angle_b"][draws.columns["label"] == c] < 180).mean() == pytest.approx(
            0.5 if angles > 1 else 1, abs=0.06
        )


def test_the_summary_is_plain_and_right():
    summary = json.loads(json.dumps(EpochDraws(table(436, 10, dropped=3)).summary()))
    expected = {"blocks_foreground": 10, "blocks_background": 436, "blocks_dropped": 3, "draws_distinct": 872}
    expected |= {"draws_foreground": 436, "draws_background": 436, "prior": 10 / 446, "batch_prior": 0.5}
    expected |= {"multiplicity_foreground": 43.6, "multiplicity_background": 1.0}
    assert summary.items() >= expected.items()
    with pytest.raises(UserError, match="epoch_blocks"):
        EpochDraws(table(4, 2), epoch_blocks=100)
    with pytest.raises(UserError, match="epoch_blocks is too small"):
        EpochDraws(table(4, 2, "any"), epoch_blocks=1)
    assert "each mitochondria block is drawn 43.6 times" in BlockDataModule.description.format_map(summary)


@settings(max_examples=200, deadline=None)
@given(
    world=st.integers(1, 9),
    extra=st.integers(0, 20),
    more=st.integers(0, 300),
    at=st.tuples(*[st.integers(0, 99)] * 2),
)
def test_all_ranks_together_are_one_device(world, extra, more, at):
    seed, epoch = at
    batch_size, size = world + extra, world + more
    samplers = [BlockSampler(size, batch_size, seed=seed, rank=r, world=world) for r in range(world)]
    alone = BlockSampler(size, batch_size, seed=seed)
    for sampler in (*samplers, alone):
        sampler.set_epoch(epoch)
    ranks = [list(sampler) for sampler in samplers]
    one = list(alone)
    assert {len(batches) for batches in ranks} == {len(sampler) for sampler in samplers} == {len(samplers[0])}
    assert all(len(batch) for batches in ranks for batch in batches)
    assert sorted(np.concatenate(one)) == list(range(size))
    if len(one) > len(samplers[0]):  # a last batch of fewer draws than ranks has joined the one before
        assert len(one[-1]) < world
        one[-2:] = [np.concatenate(one[-2:])]
    for step, batch in enumerate(one):
        parts = [batches[step] for batches in ranks]
        assert sorted(np.concatenate(parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert parts[0].tolist() == batch[::world].tolist()


@settings(max_examples=100, deadline=None)
@given(world=st.integers(1, 4), parts=st.integers(1, 4), extra=st.integers(0, 9), more=st.integers(0, 99))
def test_accumulated_parts_are_one_batch(world, parts, extra, more):
    """Gradient accumulation cuts the batch of a step, it does not make it larger."""
    batch_size, size = world * parts + extra, world * parts + more
    samplers = [BlockSampler(size, batch_size, rank=r, world=world, parts=parts) for r in range(world)]
    ranks = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in ranks} == {samplers[0].steps * parts}
    together = BlockSampler(size, batch_size, world=world * parts)  # the same shares, on as many ranks
    order = [list(BlockSampler(size, batch_size, rank=r, world=world * parts)) for r in range(world * parts)]
    for step in range(len(together)):
        found = [b for batches in ranks for b in batches[step * parts : (step + 1) * parts]]
        assert sorted(np.concatenate(found)) == sorted(np.concatenate([o[step] for o in order]))
        assert sum(map(len, found)) == samplers[0].draws_in_step(step)
        assert all(map(len, found))


def test_the_order_is_that_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = BlockSampler(50, 7, seed=seed)
        sampler.set_epoch(epoch)
        return np.concatenate(list(sampler)).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9
    for size, batch_size, world in ((10, 0, 1), (10, -5, 1), (10, 2, 3), (2, 100, 3)):  # a rank without draws
        with pytest.raises(UserError, match="batch_size"):
            BlockSampler(size, batch_size, world=world)


@pytest.fixture
def regions():
    rng, found = np.random.default_rng(0), []
    for shape, start, stop in (((9, 40, 50), (2, 3, 4), (7, 39, 48)), ((4, 33, 36), (0, 0, 0), None)):
        label_zyx = (rng.random(shape) < 0.3).astype(np.uint8)
        label_zyx[rng.random(shape) < 0.01] = 255
        found.append(region(rng.integers(0, 99, shape, np.uint8), label_zyx, start, stop))
    return found


def loader(regions, rank=0, world=1, parts=1):
    table = PositionTable(regions, BlockRule("center", "any"))
    draws = EpochDraws(table, epoch_blocks=53, balance="subsample", augment="dihedral")
    return EpochLoader(draws, BlockSampler(len(draws), 10, rank=rank, world=world, parts=parts))


def batches(blocks, epoch):
    blocks.sampler.set_epoch(epoch)
    return [{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in batch.items()} for batch in blocks]


def test_batches_are_the_draws_in_the_sampler_s_order(regions):
    blocks = loader(regions)
    found = batches(blocks, 4)
    draws = blocks.draws.draw(4)
    assert len(found) == len(blocks) == 6
    for batch, index_b in zip(found, blocks.sampler, strict=True):
        assert batch["position_b4"] == draws.position_n4[index_b].tolist()
        assert batch["label"] == draws.columns["label"][index_b].tolist()
        assert batch["angle_b"] == draws.columns["angle_b"][index_b].tolist()
        assert batch["flip_b"] == draws.columns["flip_b"][index_b].tolist()
        assert batch["exact"]  # all its angles are quarter turns
    blocks.draws.augment = "any_angle"
    assert not any(batch["exact"] for batch in blocks)


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (3, 1), (1, 4), (2, 3)])
def test_weights_make_the_average_over_shares_the_mean_over_the_step(regions, world, parts):
    """Batches of 10 out of 53 draws, in shares of unlike sizes: the average is what one device computes."""
    value = lambda batch: np.asarray(batch["position_b4"])[:, 3].astype(float)  # noqa: E731
    whole = [value(batch).mean() for batch in batches(loader(regions, parts=1), 2)]
    shares = [batches(loader(regions, r, world, parts), 2) for r in range(world)]
    assert len({len(s) for s in shares}) == 1
    for step in range(len(shares[0]) // parts):
        some = [s[step * parts + part] for s in shares for part in range(parts)]
        average = np.mean([value(batch).mean() * batch["weight"] for batch in some])
        last = step == len(shares[0]) // parts - 1
        joined = [value(b) for b in batches(loader(regions), 2)[step : None if last else step + 1]]
        assert average == pytest.approx(np.concatenate(joined).mean())
    assert parts * world > 1 or whole == [value(batch).mean() for batch in shares[0]]


def test_the_epoch_may_be_set_after_iter(regions):
    """The Trainer asks for the first epoch's iterator before it sets the epoch."""
    blocks = loader(regions)
    iterator = iter(blocks)
    blocks.sampler.set_epoch(3)
    assert next(iterator)["position_b4"].tolist() == batches(blocks, 3)[0]["position_b4"]


def test_a_resumed_epoch_goes_on_where_it_stood(regions):
    expected = batches(loader(regions), 1), batches(loader(regions), 2)
    blocks = loader(regions)
    blocks.sampler.set_epoch(1)
    iterator = iter(blocks)
    for _ in range(4):
        next(iterator)
    again = loader(regions)
    again.load_state_dict(blocks.state_dict())
    assert batches(again, 1) == expected[0][4:]
    assert batches(again, 2) == expected[1]
    assert len(list(iterator)) == 2
    blocks.sampler.set_epoch(2)  # saved between two epochs
    after = loader(regions)
    after.load_state_dict(blocks.state_dict())
    assert batches(after, 2) == expected[1]


@pytest.mark.parametrize(("stride", "world"), [(1, 1), (1, 2), (1, 5), (3, 1), (3, 3)])
def test_slices_are_shared_exactly(regions, world, stride, monkeypatch):
    def share(rank, regions=regions, world=world, stride=stride):
        monkeypatch.setattr("mitoseg.sampling.datamodule.rank_and_world", lambda: (rank, world))
        return SliceLoader(regions, Normalization(50, 2), "adjacent", stride=stride)

    ranks = [share(rank) for rank in range(world)]
    every = [(r, z) for r, depth in ((0, 5), (1, 4)) for z in range(0, depth, stride)]
    seen = [[(item["region"], item["z"]) for item in rank] for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(items) for items in seen]
    for rank, items in enumerate(seen):
        assert items == every[rank::world]
    with pytest.raises(UserError, match="cannot share the slices"):
        share(0, world=4, stride=4)
    assert list(share(0, [], world=2)) == []


@pytest.mark.parametrize("channels", ["adjacent", "single"])
def test_slices_are_whole_with_real_neighbours(regions, channels):
    for item in SliceLoader(regions, Normalization(50, 20), channels):
        source = regions[item["region"]]
        image_zyx, z = source.image.read(), item["z"] + source.box.start[0]
        planes = [z] if channels == "single" else [max(z - 1, 0), z, min(z + 1, len(image_zyx) - 1)]
        yx = source.box.slices[1:]
        expected = (image_zyx[planes][:, *yx].astype(np.float32) - 50) / 20
        np.testing.assert_array_equal(item["image_cyx"].numpy(), expected)
        assert item["label_yx"].dtype == torch.uint8
        np.testing.assert_array_equal(item["label_yx"].numpy(), source.label.read()[z][yx])


def cuboid(shape, start=(0, 0, 0), foreground=((2, 5), (8, 16), (8, 16))):
    label_zyx = np.zeros(shape, np.uint8)
    label_zyx[tuple(slice(*f) for f in foreground)] = 1
    return region(None, label_zyx, start)


REGIONS = [cuboid((6, 40, 50)), cuboid((10, 30, 30), (2, 4, 6))]
TILE = (2, 16, 16)


def test_tiles_lie_inside_and_everywhere():
    draws = EpochTiles(REGIONS, TILE, epoch_tiles=60000, augment="dihedral_z", seed=3).draw(0)
    assert len(draws.columns["seed_b"]) == 60000
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
    assert set(draws.columns["symmetry_b"].tolist()) == set(range(16))
    assert len(np.unique(draws.columns["seed_b"])) > 59000


def test_draws_follow_from_seed_and_epoch():
    make = EpochTiles(REGIONS, TILE, seed=1).draw
    again, other = EpochTiles(REGIONS, TILE, seed=1).draw, EpochTiles(REGIONS, TILE, seed=2).draw
    np.testing.assert_array_equal(make(4).position_n4, again(4).position_n4)
    assert not np.array_equal(make(4).position_n4, make(5).position_n4)
    assert not np.array_equal(make(4).position_n4, other(4).position_n4)
    assert len(make(4).columns["seed_b"]) == round(sum(r.box.size for r in REGIONS) / np.prod(TILE))


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


def test_no_tile_lies_where_nothing_is_labelled():
    """As in padding; and where everything is labelled, the draws are as ever."""
    wide = cuboid((6, 96, 128))
    label_zyx = wide.label.read(wide.box).copy()
    label_zyx[:, 24:] = label_zyx[:, :, 60:] = label_zyx[5] = 255
    ignoring = Region(wide.image, ArrayVolume(label_zyx), wide.box)
    part = Region(wide.image, ArrayVolume(label_zyx), Box((0, 5, 3), (6, 96, 128)))
    alone = EpochTiles([ignoring], TILE)
    assert alone.counts == (np.sum(label_zyx == 0), np.sum(label_zyx == 1))
    assert alone.prior == pytest.approx(np.sum(label_zyx == 1) / np.sum(label_zyx != 255))
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
        thin = cuboid((1, 40, 40), foreground=((0, 1), (0, 9), (0, 9)))
        tiles = EpochTiles([thin, REGIONS[0]], TILE, foreground_share=0.5)
    assert "smaller than a tile of 2 x 16 x 16 voxels: it is left out" in caplog.text
    assert set(tiles.draw(0).position_n4[:, 0].tolist()) == {1}
    assert len(tiles) == round(REGIONS[0].box.size / np.prod(TILE))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tile": (2, 64, 64)}, "smaller than a tile"),
        ({"tile": (2, 16, 8)}, "must be square"),
        ({"augment": "cubic"}, "three equal sides"),
        ({"foreground_share": 1.5}, "fraction of the tiles"),
        ({"epoch_tiles": 0}, "too few epoch_tiles"),
        ({"regions": [region(None, np.full((4, 20, 20), 0, np.uint8))]}, "no mitochondrion voxel in the training"),
        ({"regions": [region(None, np.full((4, 20, 20), 1, np.uint8))]}, "no background voxel in the training"),
    ],
)
def test_tiles_that_cannot_be_drawn_are_told(options, line):
    with pytest.raises(UserError, match=line):
        EpochTiles(**{"regions": REGIONS, "tile": TILE, **options})
