"""Batches and validation slices, as the Trainer iterates over them."""

import numpy as np
import pytest
import torch

from mitoseg.datasets import Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.sampling import BlockRule, BlockSampler, EpochDraws, EpochLoader, PositionTable, SliceLoader
from mitoseg.volumes import ArrayVolume, Normalization


def region(shape, box, rng):
    label_zyx = (rng.random(shape) < 0.3).astype(np.uint8)
    label_zyx[rng.random(shape) < 0.01] = 255
    return Region(ArrayVolume(rng.integers(0, 99, shape, np.uint8)), ArrayVolume(label_zyx), box)


@pytest.fixture
def regions():
    rng = np.random.default_rng(0)
    return [
        region((9, 40, 50), Box((2, 3, 4), (7, 39, 48)), rng),
        region((4, 33, 36), Box((0, 0, 0), (4, 33, 36)), rng),
    ]


def loader(regions, rank=0, world=1, parts=1):
    draws = EpochDraws(
        PositionTable(regions, BlockRule("center", "any")), epoch_blocks=53, balance="subsample", augment="dihedral"
    )
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
        assert batch["label"] == draws.label_n[index_b].tolist()
        assert batch["angle_b"] == draws.angle_n[index_b].tolist()
        assert batch["flip_b"] == draws.flip_n[index_b].tolist()


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


def test_a_batch_knows_whether_all_its_angles_are_quarter_turns(regions):
    assert all(batch["exact"] for batch in loader(regions))
    turned = loader(regions)
    turned.draws.augment = "any_angle"
    assert not any(batch["exact"] for batch in turned)


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
def test_slices_are_shared_exactly(regions, world, stride):
    ranks = [
        SliceLoader(regions, Normalization(50, 2), "adjacent", stride=stride, rank=r, world=world)
        for r in range(world)
    ]
    every = [(r, z) for r, depth in ((0, 5), (1, 4)) for z in range(0, depth, stride)]
    seen = [[(item["region"], item["z"]) for item in rank] for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(items) for items in seen]
    for rank, items in enumerate(seen):
        assert items == every[rank::world]


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


def test_mistakes_are_told_in_one_line(regions):
    with pytest.raises(UserError, match="cannot share the slices"):
        SliceLoader(regions, Normalization(0, 1), "single", stride=4, world=4)
    assert list(SliceLoader([], Normalization(0, 1), "single", world=2)) == []


def test_two_ranks_share_each_batch(regions):
    one = batches(loader(regions), 2)
    halves = [batches(loader(regions, r, 2), 2) for r in range(2)]
    for whole, a, b in zip(one, *halves, strict=True):
        assert whole["position_b4"][::2] == a["position_b4"]
        assert whole["position_b4"][1::2] == b["position_b4"]
