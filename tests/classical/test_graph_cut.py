import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mitoseg.classical.graph_cut import cut_in_parts, minimum_cut, pair_weights, unary_costs
from mitoseg.errors import UserError

pytest.importorskip("maxflow")


def energy(mask, cost, weights):
    """E of the module's docstring, of one mask or of many in a stack."""
    signed, axes = mask.astype(np.int8), (-3, -2, -1)
    pairs = sum(w * np.abs(np.diff(signed, axis=a)).sum(axes) for a, w in zip(axes, weights, strict=True))
    return (cost * mask).sum(axes) + pairs


def all_masks(shape):
    """Every mask of a shape, stacked."""
    size = int(np.prod(shape))
    return ((np.arange(2**size)[:, None] >> np.arange(size)) & 1).reshape(-1, *shape)


@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 3, 4), (3, 2, 2), (1, 1, 6)])
@pytest.mark.parametrize("weights", [(0, 0, 0), (1.0, 1.0, 1.0), (0.1, 0.7, 2.0), (0, 3.0, 0.2)])
def test_no_mask_costs_less(shape, weights):
    for seed in range(3):
        cost = np.random.default_rng(seed).normal(0, 1.5, shape)
        least = energy(all_masks(shape), cost, weights).min()
        assert energy(minimum_cut(cost, weights), cost, weights) == pytest.approx(least)


def test_without_weights_each_voxel_decides_alone():
    cost = unary_costs(np.array([[[0.0, 0.2, 0.4, 1.0]]], np.float32), 0.3)
    assert minimum_cut(cost, (0, 0, 0)).tolist() == [[[False, False, True, True]]]


def test_a_thick_section_ties_less():
    z, y, x = pair_weights(3.0, (30.0, 5.0, 10.0))
    assert (z, y, x) == pytest.approx((0.5, 3.0, 1.5))
    # a lone slice that is against its neighbours survives where they are far away
    cost = np.full((3, 4, 4), -1.0)
    cost[1] = 1.5
    assert not minimum_cut(cost, pair_weights(1.0, (30.0, 5.0, 5.0)))[1].any()
    assert minimum_cut(cost, pair_weights(1.0, (5.0, 5.0, 5.0)))[1].all()


def clouds():
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.standard_normal((14, 32, 32)), 3)
    return -(smooth / smooth.std() * 2 - 1.5) + rng.normal(0, 1.5, smooth.shape)


def test_parts_with_enough_overlap_are_the_whole():
    cost, weights = clouds(), (1.0, 1.0, 1.0)
    whole = minimum_cut(cost, weights)
    assert 0.02 < whole.mean() < 0.5
    np.testing.assert_array_equal(cut_in_parts(cost, weights, (7, 16, 16), 12), whole)
    without = cut_in_parts(cost, weights, (7, 16, 16), 0)
    assert energy(whole, cost, weights) <= energy(without, cost, weights)
    assert np.any(without != whole)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="favour"):
        minimum_cut(clouds(), (1, -1, 1))
    with pytest.raises(UserError, match="favour"):
        minimum_cut(clouds(), (1, float("nan"), 1))
    with pytest.raises(UserError, match="parts"):
        cut_in_parts(clouds(), (1, 1, 1), (0, 4, 4))
