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
from scipy.sparse import csr_array
from scipy.stats import entropy
from skimage.metrics import adapted_rand_error

from mitoseg.metrics.intervals import LEVEL
from mitoseg.metrics.overlaps import Ints, Overlaps, match_objects

THRESHOLDS = (0.5, 0.75)
"""Of IoU."""
SHARE = 0.25
"""Of the smaller of two objects that makes them linked."""
ROWS = ("all", "whole", "cut")
"""All objects; those inside the volume; those that its border cuts."""


@dataclass(frozen=True)
class Rows:
    """Sizes and border of the objects of both sides, and which of them belong to a row of the table."""

    truth: Ints
    truth_voxels: Ints
    truth_cut: npt.NDArray[np.bool_]
    result: Ints
    result_voxels: Ints
    result_cut: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, overlaps: Overlaps) -> Rows:
        """All objects of a table."""
        truth, truth_voxels = overlaps.sizes("truth")
        result, result_voxels = overlaps.sizes("result")
        cuts = np.isin(truth, overlaps.truth_cut), np.isin(result, overlaps.result_cut)
        return cls(truth, truth_voxels, cuts[0], result, result_voxels, cuts[1])

    def part(self, row: str, partner: Ints) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which true objects and which results belong to a row; a result goes where its partner goes.

        Args:
            row: One of `ROWS`.
            partner: For each result the place of its true object, or -1.
        """
        if row == "all":
            return np.ones(len(self.truth), bool), np.ones(len(self.result), bool)
        own = self.result_cut.copy()
        own[partner >= 0] = self.truth_cut[partner[partner >= 0]]
        return (self.truth_cut, own) if row == "cut" else (~self.truth_cut, ~own)


def instance_scores(
    overlaps: Overlaps,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    share: float = SHARE,
    resamples: int = 2000,
    seed: int = 1,
) -> dict[str, object]:
    """Scores of one table; see the module.

    Args:
        overlaps: Of the objects that count.
        thresholds: Of IoU; a pair must be above.
        share: Of the smaller object, from which two are linked.
        resamples: Draws of the bootstrap over objects; 0 for no intervals.
        seed: Of the draws.

    Returns:
        For each of `ROWS`: ``truth``, ``result`` (how many objects), ``splits``, ``merges``,
        ``splits_and_merges_share`` (of the true objects), ``volume_truth``, ``volume_result`` (voxels),
        ``volume_error`` (their relative difference), and ``matched``: a list with the scores of each threshold. An
        object that the border cuts is in row ``cut``; a result goes where the true object goes that it is matched to
        (``splits`` to ``volume_error``: at the first threshold), and without a partner by its own border. Beside them,
        over the voxels of all true objects, ``adapted_rand_error``, ``variation_of_information_split`` and
        ``variation_of_information_merge`` (bits). What has no denominator is NaN.
    """
    rows = Rows.of(overlaps)
    links = _links(overlaps, rows, share)
    return {
        **{row: _row(overlaps, rows, row, links, thresholds, resamples, seed) for row in ROWS},
        **partition_scores(overlaps),
    }


def _row(
    overlaps: Overlaps,
    rows: Rows,
    row: str,
    links: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    thresholds: Sequence[float],
    resamples: int,
    seed: int,
) -> dict[str, object]:
    matched, parts = [], []
    for threshold in thresholds:
        matches = match_objects(overlaps, threshold)
        partner = np.full(len(rows.result), -1)
        partner[np.searchsorted(rows.result, matches.result)] = np.searchsorted(rows.truth, matches.truth)
        truths, results = rows.part(row, partner)
        parts.append((truths, results))
        own = truths[np.searchsorted(rows.truth, matches.truth)]
        tp = int(own.sum())
        scores = match_scores(tp, int(results.sum()) - tp, int(truths.sum()) - tp, float(matches.iou[own].sum()))
        interval = f1_interval(tp, int(results.sum()) - tp, int(truths.sum()) - tp, resamples=resamples, seed=seed)
        matched.append({"iou": threshold, **scores, "f1_interval": list(interval)})
    truths, results = parts[0]
    splits, merges = int((links[0][truths] > 1).sum()), int((links[1][results] > 1).sum())
    volume, found = int(rows.truth_voxels[truths].sum()), int(rows.result_voxels[results].sum())
    count = int(truths.sum())
    return {
        "truth": count,
        "result": int(results.sum()),
        "splits": splits,
        "merges": merges,
        "splits_and_merges_share": (splits + merges) / count if count else math.nan,
        "volume_truth": volume,
        "volume_result": found,
        "volume_error": (found - volume) / volume if volume else math.nan,
        "matched": matched,
    }


def match_scores(tp: int, fp: int, fn: int, iou_sum: float) -> dict[str, float]:
    """Scores of one threshold; see the module.

    Args:
        tp: Matched pairs.
        fp: Results without a partner.
        fn: True objects without a partner.
        iou_sum: Over the matched pairs.

    >>> match_scores(3, 1, 1, 2.4)["f1"], round(match_scores(3, 1, 1, 2.4)["panoptic_quality"], 6)
    (0.75, 0.6)
    """

    def ratio(numerator: float, denominator: float) -> float:
        return numerator / denominator if denominator else math.nan

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


def f1_interval(
    tp: int, fp: int, fn: int, *, resamples: int = 2000, seed: int = 1, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile interval of F1 over objects (Efron, Annals of Statistics 7(1), 1979).

    The matched pairs, the unmatched results and the unmatched true objects are drawn with replacement, as many as
    there are. It says how much the score depends on which objects were there, not on which network was trained.
    """
    total = tp + fp + fn
    if total < 2 or not resamples:
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).multinomial(total, [tp / total, fp / total, fn / total], resamples)
    f1 = 2 * drawn[:, 0] / (drawn[:, 0] + total)
    low, high = np.quantile(f1, [(1 - level) / 2, (1 + level) / 2]).tolist()
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
    split, merge = max(joint - of_truth, 0.0), max(joint - of_result, 0.0)
    return dict(zip(names, (error, split, merge), strict=True))


def _links(overlaps: Overlaps, rows: Rows, share: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many links each true object and each result has."""
    pairs = (overlaps.truth > 0) & (overlaps.result > 0)
    i = np.searchsorted(rows.truth, overlaps.truth[pairs])
    j = np.searchsorted(rows.result, overlaps.result[pairs])
    linked = overlaps.voxels[pairs] >= share * np.minimum(rows.truth_voxels[i], rows.result_voxels[j])
    return np.bincount(i[linked], minlength=len(rows.truth)), np.bincount(j[linked], minlength=len(rows.result))
