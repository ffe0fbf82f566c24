r"""Scores of instances: is every mitochondrion found, as one?

Objects are matched one to one where their intersection over union (IoU) is above a threshold. With TP matched pairs,
FP results and FN true objects without a partner:

    precision            TP / (TP + FP)
    recall               TP / (TP + FN)
    F1                   2 TP / (2 TP + FP + FN)
    average precision    TP / (TP + FP + FN)       of the Data Science Bowl 2018 and StarDist: no ranking by confidence
    panoptic quality     sum of IoU over TP / (TP + FP / 2 + FN / 2) = segmentation quality * F1
                         (Kirillov et al., CVPR 2019); segmentation quality is the mean IoU of the matched

A true object and a result are linked if they share at least `SHARE` of the smaller of the two. A true object with two
or more links is split, a result with two or more links is a merge of several. An object may be both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import entropy
from skimage.metrics import adapted_rand_error

from mitoseg.metrics.counts import LEVEL, ratio

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

THRESHOLDS = (0.5, 0.75)  # of IoU
SHARE = 0.25  # of the smaller of two objects that makes them linked
ROWS = ("all", "whole", "cut")  # all objects; those inside the volume; those that its border cuts


def instance_scores(
    overlaps: Overlaps, *, share: float = SHARE, resamples: int = 2000, seed: int = 1
) -> dict[str, object]:
    """Scores of one table; see the module. ``resamples=0`` for no intervals.

    For each of `ROWS`: ``truth``, ``result`` (how many objects), ``splits``, ``merges``, ``splits_and_merges_share``
    (of the true objects), ``volume_truth``, ``volume_result`` (voxels), ``volume_error`` (their relative difference),
    and ``matched``: a list with the scores of each of `THRESHOLDS`. A result is ``whole`` or ``cut`` as the true
    object that it is matched to, and without a partner by its own border (``splits`` to ``volume_error``: at the first
    threshold). Beside them the keys of `partition_scores`. What has no denominator is NaN.
    """
    (truths, truth_voxels), (results, result_voxels) = (overlaps.sizes(side) for side in ("truth", "result"))
    pairs = (overlaps.truth > 0) & (overlaps.result > 0)
    i, j = np.searchsorted(truths, overlaps.truth[pairs]), np.searchsorted(results, overlaps.result[pairs])
    linked = overlaps.voxels[pairs] >= share * np.minimum(truth_voxels[i], result_voxels[j])
    split = np.bincount(i[linked], minlength=len(truths)) > 1
    merged = np.bincount(j[linked], minlength=len(results)) > 1
    truth_cut, own_cut = np.isin(truths, overlaps.truth_cut), np.isin(results, overlaps.result_cut)
    matched = []
    for threshold in THRESHOLDS:
        truth, result, iou = match_objects(overlaps, threshold)
        partners, result_cut = np.searchsorted(truths, truth), own_cut.copy()
        result_cut[np.searchsorted(results, result)] = truth_cut[partners]
        matched.append((threshold, partners, iou, result_cut))
    rows: dict[str, object] = {}
    for row in ROWS:

        def own(cut: Bools, row: str = row) -> Bools:
            return np.full(len(cut), True) if row == "all" else cut == (row == "cut")

        of_truth, of_result = own(truth_cut), own(matched[0][3])
        count, found = int(of_truth.sum()), []
        for threshold, partners, iou, result_cut in matched:
            mine = of_truth[partners]
            tp = int(mine.sum())
            wrong = tp, int(own(result_cut).sum()) - tp, count - tp
            interval = f1_interval(*wrong, resamples=resamples, seed=seed)
            scores = match_scores(*wrong, float(iou[mine].sum()))
            found.append({"iou": threshold, **scores, "f1_interval": list(interval)})
        splits, merges = int(split[of_truth].sum()), int(merged[of_result].sum())
        volume, volume_result = int(truth_voxels[of_truth].sum()), int(result_voxels[of_result].sum())
        rows[row] = {
            "truth": count,
            "result": int(of_result.sum()),
            "splits": splits,
            "merges": merges,
            "splits_and_merges_share": ratio(splits + merges, count),
            "volume_truth": volume,
            "volume_result": volume_result,
            "volume_error": ratio(volume_result - volume, volume),
            "matched": found,
        }
    return {**rows, **partition_scores(overlaps)}


def match_scores(tp: int, fp: int, fn: int, iou_sum: float) -> dict[str, float]:
    """Scores of one threshold, from matched pairs, results and true objects without a partner, and the pairs' IoU.

    >>> match_scores(3, 1, 1, 2.4)["f1"], round(match_scores(3, 1, 1, 2.4)["panoptic_quality"], 6)
    (0.75, 0.6)
    """
    f1 = ratio(2 * tp, 2 * tp + fp + fn)
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1": f1,
        "average_precision": ratio(tp, tp + fp + fn),
        "panoptic_quality": ratio(iou_sum, tp + (fp + fn) / 2),
        "segmentation_quality": ratio(iou_sum, tp),
        "recognition_quality": f1,
    }


def f1_interval(tp: int, fp: int, fn: int, *, resamples: int = 2000, seed: int = 1) -> tuple[float, float]:
    """Percentile interval of F1 over objects (Efron, Annals of Statistics 7(1), 1979).

    The matched pairs, the unmatched results and the unmatched true objects are drawn with replacement, as many as
    there are. It says how much the score depends on which objects were there, not on which network was trained.
    """
    total = tp + fp + fn
    if total < 2 or not resamples:
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).multinomial(total, [tp / total, fp / total, fn / total], resamples)
    f1 = 2 * drawn[:, 0] / (drawn[:, 0] + total)
    low, high = np.quantile(f1, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


def partition_scores(overlaps: Overlaps) -> dict[str, float]:
    """Adapted Rand error and variation of information, over the voxels of true objects.

    The adapted Rand error is that of Arganda-Carreras et al. (Frontiers in Neuroanatomy 9, 2015), the variation of
    information Meila's (Journal of Multivariate Analysis 98(5), 2007): ``split`` is H(result | truth), ``merge`` is
    H(truth | result), in bits. The background of the result counts as one more object.
    """
    inside = overlaps.truth > 0
    voxels = overlaps.voxels[inside]
    names = ("adapted_rand_error", "variation_of_information_split", "variation_of_information_merge")
    if voxels.sum() < 2:
        return dict.fromkeys(names, math.nan)
    _, row = np.unique(overlaps.truth[inside], return_inverse=True)
    _, column = np.unique(overlaps.result[inside], return_inverse=True)
    table = csr_array((voxels.astype(np.float64), (row, column)))
    sides = [np.asarray(table.sum(axis=axis)) for axis in (0, 1)]
    pairs = all((side**2).sum() > side.sum() for side in sides)
    error = float(adapted_rand_error(table=table)[0]) if pairs else math.nan  # type: ignore[no-untyped-call]
    of_result, of_truth, joint = (float(entropy(values, base=2)) for values in (*sides, table.data))
    return dict(zip(names, (error, max(joint - of_truth, 0.0), max(joint - of_result, 0.0)), strict=True))


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
