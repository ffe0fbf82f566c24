"""The table from which instances are scored: how many voxels each true object shares with each result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Overlaps:
    """A sparse contingency table of two label volumes; 0 is background, and its overlap with itself is left out.

    ``truth``, ``result`` and ``voxels`` (m,) are the ids of each pair and the voxels that the two share,
    ``truth_cut`` and ``result_cut`` the ids that the border of the volume cuts.
    """

    truth: Ints
    result: Ints
    voxels: Ints
    truth_cut: Ints
    result_cut: Ints

    @classmethod
    def collect(
        cls, parts: Sequence[tuple[Ints, Ints, Ints]], truth_cut: Sequence[int], result_cut: Sequence[int]
    ) -> Overlaps:
        """Sum what `count_overlaps` gave for each part of a volume."""
        names = ("truth", "result", "voxels")
        columns = [np.concatenate([np.zeros(0, np.int64), *(part[i] for part in parts)]) for i in range(3)]
        frame = pd.DataFrame(dict(zip(names, columns, strict=True)))
        total = frame.groupby(["truth", "result"], sort=True, as_index=False)["voxels"].sum()
        cuts = (np.array(sorted(cut), np.int64) for cut in (truth_cut, result_cut))
        return cls(*(total[name].to_numpy(np.int64) for name in names), *cuts)

    def sizes(self, side: str) -> tuple[Ints, Ints]:
        """Ids of all objects of one side, ``truth`` or ``result``, ascending, and their voxels."""
        total = pd.Series(self.voxels).groupby(getattr(self, side)).sum().drop(0, errors="ignore")
        return total.index.to_numpy(np.int64), total.to_numpy(np.int64)

    def without_small(self, least: int) -> tuple[Overlaps, int, int]:
        """The table without objects below ``least`` voxels, and how many true ones and results those are."""
        sides, counts = [], []
        for side in ("truth", "result"):
            ids, voxels = self.sizes(side)
            small = ids[voxels < least]
            counts.append(len(small))
            sides.append(np.where(np.isin(getattr(self, side), small), 0, getattr(self, side)))
        kept = (sides[0] > 0) | (sides[1] > 0)
        part = (sides[0][kept], sides[1][kept], self.voxels[kept])
        return Overlaps.collect([part], self.truth_cut.tolist(), self.result_cut.tolist()), counts[0], counts[1]


def count_overlaps(truth: npt.NDArray[np.integer], result: npt.NDArray[np.integer]) -> tuple[Ints, Ints, Ints]:
    """Pairs of ids (below 2**32) and their voxels in two arrays of one shape, (0, 0) left out.

    >>> [column.tolist() for column in count_overlaps(np.array([0, 1, 1, 0]), np.array([0, 1, 1, 2]))]
    [[0, 1], [2, 1], [1, 2]]
    """
    if truth.shape != result.shape:
        raise ValueError(f"truth and result differ in shape: {truth.shape} and {result.shape}")
    there = (truth != 0) | (result != 0)
    code = (truth[there].astype(np.uint64) << np.uint64(32)) | result[there].astype(np.uint64)
    pairs, voxels = np.unique(code, return_counts=True)
    low = np.uint64(0xFFFFFFFF)
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & low).astype(np.int64), voxels.astype(np.int64)


def pool_overlaps(tables: Sequence[Overlaps]) -> Overlaps:
    """One table of several volumes, whose objects all differ."""
    parts: list[tuple[Ints, Ints, Ints]] = []
    truth_cut: list[int] = []
    result_cut: list[int] = []
    truths = results = 0
    for table in tables:
        truth = np.where(table.truth > 0, table.truth + truths, 0)
        result = np.where(table.result > 0, table.result + results, 0)
        parts.append((truth, result, table.voxels))
        truth_cut += (table.truth_cut + truths).tolist()
        result_cut += (table.result_cut + results).tolist()
        truths = max(truths, *truth.tolist(), *truth_cut)
        results = max(results, *result.tolist(), *result_cut)
    return Overlaps.collect(parts, truth_cut, result_cut)


def match_objects(overlaps: Overlaps, threshold: float) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """Match objects one to one whose intersection over union is above ``threshold``: true ids, results' ids and IoU.

    Above one half an object has one such partner at most (Kirillov et al., CVPR 2019). Below, as many pairs as
    possible are taken, and among such choices the one of the largest sum (linear assignment).
    """
    pairs = (overlaps.truth > 0) & (overlaps.result > 0)
    truth, result, shared = overlaps.truth[pairs], overlaps.result[pairs], overlaps.voxels[pairs]
    (truths, voxels), (results, others) = overlaps.sizes("truth"), overlaps.sizes("result")
    iou = shared / (voxels[np.searchsorted(truths, truth)] + others[np.searchsorted(results, result)] - shared)
    near = iou > threshold
    truth, result, iou = truth[near], result[near], iou[near]
    chosen = np.arange(len(iou)) if threshold >= 0.5 else _assign(truth, result, iou)
    return truth[chosen], result[chosen], iou[chosen]


def _assign(truth: Ints, result: Ints, iou: npt.NDArray[np.float64]) -> Ints:
    """Which of the candidates are taken: most pairs, then the largest sum; each group of rivals by itself."""
    rows, row = np.unique(truth, return_inverse=True)
    columns, column = np.unique(result, return_inverse=True)
    total = len(rows) + len(columns)
    if not total:
        return np.zeros(0, np.int64)
    _, group = connected_components(coo_array((iou, (row, column + len(rows))), (total, total)), directed=False)
    chosen = []
    for members in pd.Series(np.arange(len(iou))).groupby(group[row]).indices.values():
        r, i = np.unique(row[members], return_inverse=True)
        c, j = np.unique(column[members], return_inverse=True)
        value, index = np.zeros((len(r), len(c))), np.full((len(r), len(c)), -1)
        value[i, j] = 1 + iou[members] / (2 * min(len(r), len(c)))
        index[i, j] = members
        picked = index[linear_sum_assignment(value, maximize=True)]
        chosen.append(picked[picked >= 0])
    return np.sort(np.concatenate(chosen))
