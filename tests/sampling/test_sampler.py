"""Batches over ranks: nothing twice, nothing lost, the same steps everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitoseg.errors import UserError
from mitoseg.sampling.draws import BlockSampler


@settings(max_examples=200, deadline=None)
@given(
    world=st.integers(1, 9),
    extra=st.integers(0, 20),
    more=st.integers(0, 300),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
)
def test_all_ranks_together_are_one_device(world, extra, more, seed, epoch):
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


@pytest.mark.parametrize(("size", "batch_size", "world"), [(10, 0, 1), (10, -5, 1), (10, 2, 3), (2, 100, 3)])
def test_a_rank_without_draws_is_refused(size, batch_size, world):
    with pytest.raises(UserError, match="batch_size"):
        BlockSampler(size, batch_size, world=world)
