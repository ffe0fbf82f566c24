"""How far a score would wander on other tissue of the same kind: bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mitoseg.metrics.counts import Counts, scores

LEVEL = 0.95
"""Share of the draws that an interval holds."""
SCORES = ("jaccard_foreground", "jaccard_background", "jaccard_mean", "dice", "precision", "recall")
"""The scores that have an interval."""


def bootstrap_intervals(
    parts: Sequence[Counts], *, resamples: int = 2000, seed: int = 1, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the pooled scores over parts of the tissue (Efron, Annals of Statistics 7(1), 1979).

    As many parts as there are are drawn with replacement, their counts are summed, and scores are computed from the
    sum; the interval holds the middle ``level`` of what ``resamples`` draws gave. Parts that lie side by side are
    alike, so the interval is rather too narrow than too wide.

    Args:
        parts: Counts of each part, such as a z-slab.
        resamples: Number of draws, 1 or more.
        seed: Of the draws.
        level: Between 0 and 1.

    Returns:
        ``(low, high)`` of each of `SCORES`. A draw in which a score has no denominator does not count for it. NaN
        where no draw is left, and where there are fewer than two parts: one says nothing of spread.

    >>> bootstrap_intervals([Counts(tp=1, fp=1), Counts(tp=3, fn=1)])["recall"]
    (0.75, 1.0)
    """
    if len(parts) < 2:
        return {name: (math.nan, math.nan) for name in SCORES}
    counts = np.array([[part.tp, part.fp, part.fn, part.tn] for part in parts], np.int64)
    drawn = np.random.default_rng(seed).integers(0, len(counts), (resamples, len(counts)))
    found = [scores(Counts(*row)) for row in counts[drawn].sum(axis=1).tolist()]
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {}
    for name in SCORES:
        defined = [values[name] for values in found if not math.isnan(values[name])]
        low, high = np.quantile(defined, tails).tolist() if defined else (math.nan, math.nan)
        intervals[name] = low, high
    return intervals
