"""Positions and their classes against a naive loop, and the real volume's counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_regions import Guarded, region

from mitoseg.datasets import IGNORE
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.sampling.positions import BlockRule, PositionTable, box_sums
from mitoseg.volumes import map_labels, open_volume

RULES = [(p, r) for p in ("grid", "any") for r in ("purity", "majority", "center")]


def blobs(shape, rng, ignored=0.0):
    """Labels with blocks of every purity, and some ignored voxels."""
    coarse = rng.random((shape[0], shape[1] // 5 + 1, shape[2] // 5 + 1)) < rng.random((shape[0], 1, 1))
    label_zyx = coarse.repeat(5, 1).repeat(5, 2)[:, : shape[1], : shape[2]].astype(np.uint8)
    label_zyx[rng.random(shape) < ignored] = IGNORE
    return label_zyx


def naive(label_zyx, rule):
    """{(z, y, x): class} by the words of the rule."""
    half, side = rule.block // 2, rule.block
    Z, Y, X = label_zyx.shape
    found = {}
    for z, y, x in np.ndindex(Z, Y, X):
        if rule.positions == "grid" and ((y - half) % side or (x - half) % side):
            continue
        inside = half <= y <= Y - side + half and half <= x <= X - side + half
        if not inside and (rule.positions == "grid" or rule.label_rule != "center"):
            continue
        block = label_zyx[z, y - half : y - half + side, x - half : x - half + side]
        if rule.label_rule == "center":
            found[z, y, x] = int(label_zyx[z, y, x])
        elif (block == IGNORE).any():
            found[z, y, x] = IGNORE
        elif rule.label_rule == "majority":
            found[z, y, x] = int(block.mean() > 0.5)
        else:
            low, high = rule.purity
            found[z, y, x] = 1 if block.mean() >= high - 1e-12 else 0 if block.mean() <= low + 1e-12 else IGNORE
    return found


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), rule=st.sampled_from(RULES), block=st.sampled_from([4, 5, 8]))
def test_the_table_is_the_naive_loop(seed, rule, block):
    rng = np.random.default_rng(seed)
    positions, label_rule = rule
    rule = BlockRule(label_rule, positions, (0.25, 0.75), block)
    labels = [blobs(rng.integers((1, 9, 9), (4, 22, 22)), rng, 0.01) for _ in range(2)]
    labels[0][0, :8, :8], labels[1][0, :8, :8] = 0, 1  # so that neither class is empty
    table = PositionTable([region(None, label) for label in labels], rule)
    expected = {(r, *at): c for r, label in enumerate(labels) for at, c in naive(label, rule).items()}
    assert len(table) == len(expected)
    for c in (0, 1):
        found = [tuple(p) for p in table.positions(table.members(c)).tolist()]
        assert found == sorted(at for at, k in expected.items() if k == c)
        assert table.counts[c] == len(found)
    assert table.dropped == sum(c == IGNORE for c in expected.values())
    assert table.prior == table.counts[1] / (table.counts[0] + table.counts[1])
    assert table.grid_blocks == sum(z * (y // block) * (x // block) for z, y, x in (a.shape for a in labels))


def test_box_sums_are_sums():
    mask_zyx = np.random.default_rng(0).random((2, 17, 23)) < 0.4
    for block, step in ((4, 4), (4, 1), (5, 3), (17, 1)):
        sums = box_sums(mask_zyx, block, step)
        for z, i, j in np.ndindex(sums.shape):
            y, x = step * i, step * j
            assert sums[z, i, j] == mask_zyx[z, y : y + block, x : x + block].sum()
        assert sums.shape == (2, (17 - block) // step + 1, (23 - block) // step + 1)


@pytest.mark.parametrize(("share", "expected"), [(819, IGNORE), (820, 1), (204, 0), (205, IGNORE)])
def test_purity_at_its_thresholds(share, expected):
    """80 % of 1024 pixels is 819.2, 20 % is 204.8."""
    label_zyx = np.zeros((1, 32, 32), np.uint8)
    label_zyx.flat[:share] = 1
    assert BlockRule("purity").classes(label_zyx).tolist() == [[[expected]]]


def test_labels_outside_the_region_are_never_read():
    label_zyx = np.full((6, 96, 96), 7, np.uint8)  # any use of a 7 would be seen
    inside = Box((2, 16, 20), (4, 80, 84))
    label_zyx[inside.slices] = 0
    label_zyx[2:4, 16:48, 20:52] = 1

    guarded = region(label_zyx, Guarded(label_zyx, inside), inside.start, inside.stop)
    for positions, label_rule in RULES:
        table = PositionTable([guarded], BlockRule(label_rule, positions))
        position = table.positions(np.arange(len(table)))
        margin = 0 if (positions, label_rule) == ("any", "center") else 16
        assert position[:, 2:].min() >= margin
        assert position[:, 2:].max() <= 63 - max(0, margin - 1)
        if positions == "grid":
            assert table.counts == (6, 2)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.97])
def test_sampling_is_uniform_within_a_class(share):
    rng = np.random.default_rng(1)
    label_zyx = (rng.random((3, 40, 50)) < share).astype(np.uint8)
    label_zyx[0, 0, :2] = (0, 1)
    table = PositionTable([region(None, label_zyx)], BlockRule("center", "any"))
    for label in (0, 1):
        members = table.members(label)
        number = table.sample(label, 20 * len(members), rng)
        assert len(number) == 20 * len(members)
        times = np.bincount(number, minlength=len(table))
        assert times.sum() == times[members].sum()
        assert abs(times[members].std() / np.sqrt(20) - 1) < 0.35 or len(members) < 10
    same = [table.sample(1, 9, np.random.default_rng(4)).tolist() for _ in range(2)]
    assert same[0] == same[1]


def test_mistakes_are_told_in_one_line():
    small, empty = np.zeros((2, 40, 31), np.uint8), np.zeros((2, 64, 64), np.uint8)
    cases = {"mine is smaller than a block of 32": region(None, small, name="mine")}
    cases |= {"no mitochondria block.*positions=any": region(None, empty), "no background": region(None, empty + 1)}
    for line, bad in cases.items():
        with pytest.raises(UserError, match=line):
            PositionTable([bad], BlockRule())


@pytest.fixture(scope="module")
def epfl(real_data):
    """The labels of the benchmark's training volume."""
    label = open_volume(str(real_data / "epfl_ca1" / "training_groundtruth.tif"))
    return region(None, map_labels(label).read())


def test_the_benchmark_has_its_blocks(epfl):
    table = PositionTable([epfl], BlockRule())
    assert len(table) == table.grid_blocks == 126_720
    label_zyx = epfl.read_label()
    pixels = label_zyx.reshape(165, 24, 32, 32, 32).sum((2, 4), dtype=int)  # counted another way
    assert table.counts == ((pixels <= 204).sum(), (pixels >= 820).sum()) == (115_630, 3_080)
    assert table.dropped == 8_010


def test_every_pixel_of_the_benchmark(epfl):
    table = PositionTable([epfl], BlockRule("center", "any"))
    assert len(table) == sum(table.counts) == 165 * 768 * 1024
    assert table.prior == pytest.approx(0.0563, abs=5e-5)
