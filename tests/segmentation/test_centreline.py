"""Lengths, diameters and branches of tubes that are known, at any turn and place."""

import numpy as np
import pytest
from solids import arc, arc_length, centreline, ellipsoid, helix, straight, tube

CUBIC, THICK = (5.0, 5.0, 5.0), (30.0, 5.0, 5.0)
R = 45.0  # nm


def measured(lines, spacing, seed=0, radius=R):
    return centreline(tube(lines, radius, spacing, np.random.default_rng(seed)), spacing)


@pytest.mark.parametrize("spacing", [CUBIC, THICK])
@pytest.mark.parametrize("long", [4, 14])
@pytest.mark.parametrize("seed", [0, 1])
def test_straight_tubes_reach_to_their_tips(spacing, long, seed):
    line = measured([straight([0, 0, 0], [0, 0, long * R])], spacing, seed)
    assert line.length == pytest.approx((long + 2) * R, rel=0.03)
    assert line.tortuosity == pytest.approx(1, abs=0.02)
    assert line.branches == 0
    assert line.diameter_mean == pytest.approx(2 * R, rel=0.08 if spacing == CUBIC else 0.15)
    assert line.diameter_max == pytest.approx(2 * R, rel=0.06 if spacing == CUBIC else 0.12)


@pytest.mark.parametrize("spacing", [CUBIC, THICK])
def test_bent_tubes(spacing):
    line = measured([arc(5 * R, np.pi)], spacing)
    assert line.length == pytest.approx(5 * R * np.pi + 2 * R, rel=0.04)
    assert line.tortuosity == pytest.approx((5 * np.pi + 2) / 12, rel=0.04)
    assert line.branches == 0


@pytest.mark.parametrize("spacing", [CUBIC, THICK])
def test_helices(spacing):
    curve = helix(4 * R, 5 * R, 2)
    line = measured([curve], spacing)
    assert line.length == pytest.approx(arc_length(curve) + 2 * R, rel=0.06)
    assert line.branches == 0
    assert line.tortuosity > 3


@pytest.mark.parametrize("spacing", [CUBIC, THICK])
def test_a_t_has_one_branch_and_a_bump_none(spacing):
    bar = straight([0, -9 * R, 0], [0, 9 * R, 0])
    stem, bump = (straight([0, 0, 0], [0, 0, high * R]) for high in (8, 0.7))
    assert measured([bar, stem], spacing).branches == 1
    assert measured([bar, stem], spacing).length == pytest.approx(20 * R, rel=0.03)
    assert measured([bar, bump], spacing).branches == 0
    comb = [straight([0, at * R, 0], [0, at * R, 6 * R]) for at in (-5, 0, 5)]
    assert measured([bar, *comb], spacing).branches == 3


def test_a_y_is_measured_along_its_longest_arms():
    arms = [straight([0, 0, 0], n * R * np.array([0, np.cos(a), np.sin(a)])) for a, n in ((0, 10), (2.1, 8), (4.2, 5))]
    line = measured(arms, CUBIC)
    assert line.branches == 1
    assert line.length == pytest.approx(20 * R, rel=0.05)


@pytest.mark.parametrize("axes", [(60.0, 60.0, 60.0), (120.0, 50.0, 50.0)])
def test_blobs(axes):
    mask, _ = ellipsoid(axes, CUBIC, np.random.default_rng(0))
    line = centreline(mask, CUBIC)
    assert line.length == pytest.approx(2 * max(axes), rel=0.06)
    assert line.diameter_max == pytest.approx(2 * min(axes), rel=0.08)
    assert line.branches == 0
    assert line.tortuosity == pytest.approx(1, abs=0.03)


def test_what_the_volume_cuts_ends_at_its_face():
    mask = tube([straight([0, 0, 0], [400, 0, 0])], R, CUBIC, np.random.default_rng(0), turned=False)[20:60]
    free = ((False, False),) * 3
    cut = ((True, True), *free[1:])
    assert centreline(mask, CUBIC, cut).length == pytest.approx(200, rel=0.04)
    assert centreline(mask, CUBIC, cut).diameter_mean == pytest.approx(2 * R, rel=0.08)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 4), (1, 5, 5), (2, 1, 1), (3, 3, 3)])
@pytest.mark.parametrize("spacing", [CUBIC, THICK])
def test_a_few_voxels_give_numbers(shape, spacing):
    line = centreline(np.ones(shape, bool), spacing)
    values = [line.length, line.straight, line.diameter_mean, line.diameter_max, line.tortuosity]
    assert np.isfinite(values).all()
    assert min(values) > 0


def test_two_pieces_and_a_ring():
    mask = np.zeros((9, 9, 80), bool)
    mask[2:7, 2:7, 2:12] = mask[2:7, 2:7, 30:78] = True
    assert centreline(mask, CUBIC).length == pytest.approx(48 * 5, rel=0.12)
    ring = arc(5 * R, 2 * np.pi)
    assert measured([ring], CUBIC).length == pytest.approx(5 * R * np.pi, rel=0.15)


@pytest.mark.parametrize("spacing", [CUBIC, THICK])
def test_two_lobes_on_a_string(spacing):
    """The neck is one voxel thin: the surface's blur takes it away, the path still goes through."""
    depth = 13 if spacing == CUBIC else 3
    mask = np.zeros((depth, 13, 100), bool)
    mask[:, :, :14] = mask[:, :, -14:] = mask[depth // 2, 6] = True
    line = centreline(mask, spacing)
    assert line.length == pytest.approx(100 * 5, rel=0.1)
    assert line.diameter_mean < 0.8 * line.diameter_max
    mask[depth // 2, 6, 40:60] = False
    assert centreline(mask, spacing).length < 300
