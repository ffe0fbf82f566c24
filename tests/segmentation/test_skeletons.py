"""Skeletons of tubes, branches and small objects, and their SWC text."""

import numpy as np
import pytest
from shapes import ball, tube

from mitoseg.errors import UserError
from mitoseg.segmentation.skeletons import Skeleton, skeletonize, smooth_lines, swc

KIMIMARO = pytest.importorskip("kimimaro")


@pytest.mark.parametrize(
    ("direction", "size", "tolerance"),
    [((0, 0, 1), (5, 5, 5), 0.01), ((0.4, -0.7, 0.6), (5, 5, 5), 0.01), ((0.3, 0.8, 0.5), (50, 5, 5), 0.05)],
)
def test_the_length_of_a_tube(direction, size, tolerance):
    skeleton = skeletonize(tube(direction, 700, 50, size), size)
    assert skeleton.length == pytest.approx(800, rel=tolerance)
    assert (skeleton.degree == 1).sum() == 2
    middle = np.sort(skeleton.radii)[len(skeleton.radii) // 3 :]
    assert np.median(middle) == pytest.approx(50, abs=max(size) if max(size) < 20 else 10)


def test_points_are_x_y_z_in_nm_on_the_axis():
    mask = tube((0, 0, 1), 300, 30, (5, 5, 5))
    skeleton = skeletonize(mask, (5, 5, 5), start=(100, 200, 300))
    middle = np.abs(skeleton.points[:, 0] - (300 + mask.shape[2] / 2) * 5) < 100
    assert middle.sum() > 30
    assert skeleton.points[middle, 1] == pytest.approx((200 + mask.shape[1] / 2) * 5, abs=3)
    assert skeleton.points[middle, 2] == pytest.approx((100 + mask.shape[0] / 2) * 5, abs=3)


def test_a_branch_has_a_junction():
    one, other = tube((0, 0, 1), 800, 30, (5, 5, 5)), tube((0, 1, 0), 800, 30, (5, 5, 5))
    size = max(one.shape[2], other.shape[1])
    mask = np.zeros((one.shape[0], size, size), bool)
    middle = size // 2
    mask[:, middle - one.shape[1] // 2 :, :][:, : one.shape[1]] |= one
    mask[:, middle:, middle - other.shape[2] // 2 :][:, :, : other.shape[2]] |= other[:, middle:]
    skeleton = skeletonize(mask, (5, 5, 5))
    assert (skeleton.degree == 1).sum() == 3
    assert (skeleton.degree == 3).sum() == 1


def test_a_speck_has_one_point():
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    skeleton = skeletonize(mask, (10, 5, 5), start=(4, 0, 0))
    assert skeleton.points.tolist() == [[7.5, 7.5, 55]]
    assert skeleton.length == 0
    assert swc(skeleton, 3).splitlines()[-1].split()[0::6] == ["1", "-1"]
    with pytest.raises(ValueError, match="empty"):
        skeletonize(np.zeros((2, 2, 2), bool), (5, 5, 5))


def test_smoothing_leaves_ends_and_lines():
    points = np.array([[float(i), 0, 0] for i in range(30)])
    edges = np.stack([np.arange(29), np.arange(1, 30)], axis=1)
    straight = Skeleton(points, np.ones(30), edges)
    assert smooth_lines(straight).points == pytest.approx(points, abs=1e-9)
    zigzag = points + np.array([[0, i % 2, 0] for i in range(30)])
    smooth = smooth_lines(Skeleton(zigzag, np.ones(30), edges))
    assert smooth.points[[0, -1]] == pytest.approx(zigzag[[0, -1]])
    assert smooth.length < 30 < Skeleton(zigzag, np.ones(30), edges).length


def test_swc_is_a_forest_with_parents_first():
    points = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 1, 0], [9, 9, 9], [8, 9, 9]], float)
    edges = np.array([[1, 0], [1, 2], [3, 1], [5, 4]])
    rows = [row.split() for row in swc(Skeleton(points, np.arange(6.0), edges), 7).splitlines() if row[0] != "#"]
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row[6] for row in rows].count("-1") == 2
    found = set()
    by_number = {row[0]: row for row in rows}
    for row in rows:
        assert int(row[6]) < int(row[0])
        if row[6] != "-1":
            ends = [tuple(map(float, by_number[n][2:5])) for n in (row[0], row[6])]
            found.add(frozenset(ends))
    assert found == {frozenset(tuple(points[i].tolist()) for i in edge) for edge in edges.tolist()}
    assert [float(row[5]) for row in rows if row[2:5] == ["1.000", "1.000", "0.000"]] == [3]


def test_without_the_extra_there_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kimimaro", None)
    with pytest.raises(UserError, match=r"kimimaro.*pip install \"mitoseg\[mesh\]\""):
        skeletonize(ball(20, (5, 5, 5)), (5, 5, 5))
