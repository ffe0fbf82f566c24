"""How far two groups of measurements lie apart: effect sizes, their intervals, and tests.

Objects of one volume are more alike than objects of two: a test over objects counts each of them as news, and finds
differences where there are none (pseudoreplication: Hurlbert, Ecological Monographs 54(2), 1984; Lazic, BMC
Neuroscience 11:5, 2010). So each group is a list of volumes here, and intervals and `volume_test` respect it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import false_discovery_control, mannwhitneyu

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Group = Sequence[Floats]  # finite values of one measure, an array for each volume
Interval = tuple[float, float]

CORRECTIONS = ("holm", "benjamini_hochberg", "none")
STATISTICS = ("mean_a", "mean_b", "median_a", "median_b", "difference", "hedges_g", "cliffs_delta")


def hedges_g(a: Floats, b: Floats) -> float:
    """Difference of the means, b - a, in pooled standard deviations, without the bias of small samples.

    g = (1 - 3 / (4 (n_a + n_b) - 9)) (mean_b - mean_a) / s (Hedges, J. Educational Statistics 6(2), 1981); NaN with
    fewer than two values in a group or without spread.

    >>> round(hedges_g(np.array([1.0, 2, 3]), np.array([2.0, 3, 4])), 3)
    0.8
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    return _g(len(a), float(a.mean()), float(a.var(ddof=1)), len(b), float(b.mean()), float(b.var(ddof=1)))


def cliffs_delta(a: Floats, b: Floats) -> float:
    """Chance that a value of b is larger than one of a, less the chance that it is smaller: -1 to 1.

    (Cliff, Psychological Bulletin 114(3), 1993.) NaN where a group is empty.

    >>> cliffs_delta(np.array([1.0, 2]), np.array([2.0, 3]))
    0.75
    """
    if not len(a) or not len(b):
        return math.nan
    ordered = np.sort(a)
    below, upto = np.searchsorted(ordered, b, "left"), np.searchsorted(ordered, b, "right")
    return float((below - (len(a) - upto)).sum() / (len(a) * len(b)))


def object_test(a: Floats, b: Floats) -> float:
    """P-value of Mann and Whitney's U test, two-sided; it takes all objects for independent."""
    return float(mannwhitneyu(b, a, alternative="two-sided").pvalue) if len(a) and len(b) else math.nan


def volume_test(a: Group, b: Group, *, permutations: int, rng: np.random.Generator) -> tuple[float, float]:
    """Permutation test of the means of the volumes: each volume counts once, however many objects it has.

    The statistic is the absolute difference of the groups' means of volume means; volumes are dealt to the groups in
    all ways, or in ``permutations`` random ones where there are more (Phipson and Smyth, Stat. Appl. Genet. Mol. Biol.
    9(1), 2010, for the 1 that is added there).

    Gives the p-value, and the smallest that so many volumes allow; NaN with fewer than two volumes in a group.
    """
    means = np.array([values.mean() for values in (*a, *b) if len(values)])
    count_a, count = sum(len(v) > 0 for v in a), len(means)
    if count_a < 2 or count - count_a < 2:
        return math.nan, math.nan
    ways = math.comb(count, count_a)
    if ways <= permutations:
        chosen = np.array(list(itertools.combinations(range(count), count_a)))
    else:
        chosen = rng.permuted(np.tile(np.arange(count), (permutations, 1)), axis=1)[:, :count_a]
    total = means[chosen].sum(axis=1)
    found = np.abs(total / count_a - (means.sum() - total) / (count - count_a))
    truth = abs(means[:count_a].mean() - means[count_a:].mean())
    as_far = int((found >= truth * (1 - 1e-9) - 1e-300).sum())
    if ways <= permutations:
        return as_far / ways, (2 if 2 * count_a == count else 1) / ways
    return (as_far + 1) / (permutations + 1), 1 / (permutations + 1)


@dataclass(frozen=True)
class _Sorted:
    """A group's values in ascending order, with the places of those of each volume; empty volumes are left out."""

    values: Floats
    members: list[Ints]

    @classmethod
    def of(cls, group: Group) -> _Sorted:
        filled = [values for values in group if len(values)]
        joined = np.concatenate(filled) if filled else np.zeros(0)
        volume = np.repeat(np.arange(len(filled)), [len(values) for values in filled])
        order = np.argsort(joined, kind="stable")
        return cls(joined[order], [np.flatnonzero(volume[order] == i) for i in range(len(filled))])

    def draw(self, rng: np.random.Generator) -> Ints:
        """How often each value is in a resample: volumes are drawn, where there are several, then objects of each."""
        several = len(self.members) > 1
        drawn = rng.integers(0, len(self.members), len(self.members)) if several else [0]
        picks = [self.members[i][rng.integers(0, len(self.members[i]), len(self.members[i]))] for i in drawn]
        return np.bincount(np.concatenate(picks), minlength=len(self.values))


def bootstrap(
    a: Group, b: Group, *, resamples: int, level: float, seeds: tuple[Sequence[int], Sequence[int]]
) -> dict[str, Interval]:
    """Percentile intervals of the means, medians, their difference and both effect sizes.

    Hierarchical: volumes are drawn with replacement, then objects of each (Saravanan, Berman and Sober, Neurons,
    Behavior, Data Analysis and Theory 3(5), 2020); with one volume in a group only its objects are drawn. Each group
    has its own seed, so that its own intervals do not depend on the other. NaN where no draw has a value, and where
    one object alone says nothing of spread.
    """
    first, second = _Sorted.of(a), _Sorted.of(b)
    rng_a, rng_b = (np.random.default_rng(list(seed)) for seed in seeds)
    unknown = math.nan, math.nan
    alone = {"a": len(first.values) < 2, "b": len(second.values) < 2}
    if not len(first.values) or not len(second.values):
        return dict.fromkeys(STATISTICS, unknown)
    below = np.searchsorted(first.values, second.values, "left")
    upto = np.searchsorted(first.values, second.values, "right")
    found = []
    for _ in range(resamples):
        times_a, times_b = first.draw(rng_a), second.draw(rng_b)
        upward = np.concatenate([[0], np.cumsum(times_a)])
        n_a, mean_a, var_a, median_a = _moments(first.values, times_a)
        n_b, mean_b, var_b, median_b = _moments(second.values, times_b)
        delta = float((times_b * (upward[below] - (n_a - upward[upto]))).sum() / (n_a * n_b))
        g = _g(n_a, mean_a, var_a, n_b, mean_b, var_b) if min(n_a, n_b) > 1 else math.nan
        found.append((mean_a, mean_b, median_a, median_b, mean_b - mean_a, g, delta))
    intervals = {}
    for name, values in zip(STATISTICS, np.array(found).T, strict=True):
        defined = values[np.isfinite(values)]
        ends = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) if len(defined) else unknown
        intervals[name] = unknown if alone.get(name[-1], any(alone.values())) else (float(ends[0]), float(ends[1]))
    return intervals


def adjust(p_values: Sequence[float], correction: str) -> list[float]:
    """P-values of one family, corrected for how many there are; NaN stays and does not count.

    ``holm`` (chance of any false one, Scand. J. Statistics 6(2), 1979), ``benjamini_hochberg`` (share of false ones
    among those found, J. R. Stat. Soc. B 57(1), 1995) or ``none``.

    >>> adjust([0.01, float("nan"), 0.04], "holm")
    [0.02, nan, 0.04]
    """
    found = np.array(p_values, np.float64)
    known = np.flatnonzero(np.isfinite(found))
    if correction == "benjamini_hochberg" and len(known):
        found[known] = false_discovery_control(found[known])
    elif correction == "holm":
        order = known[np.argsort(found[known], kind="stable")]
        stepped = np.maximum.accumulate(found[order] * np.arange(len(order), 0, -1))
        found[order] = np.minimum(stepped, 1)
    return [float(p) for p in found]


def _moments(values: Floats, times: Ints) -> tuple[int, float, float, float]:
    """Number, mean, variance and median of sorted values that occur so many times."""
    upward = np.cumsum(times)
    count = int(upward[-1])
    mean = float(values @ times / count)
    variance = float((values - mean) ** 2 @ times / max(count - 1, 1))
    middle = np.searchsorted(upward, [(count - 1) // 2, count // 2], "right")
    return count, mean, variance, float(values[middle].mean())


def _g(n_a: int, mean_a: float, var_a: float, n_b: int, mean_b: float, var_b: float) -> float:
    spread = math.sqrt(((n_a - 1) * var_a + (n_b - 1) * var_b) / (n_a + n_b - 2))
    if spread <= 1e-12 * max(abs(mean_a), abs(mean_b)) or spread == 0:
        return math.nan
    return (1 - 3 / (4 * (n_a + n_b) - 9)) * (mean_b - mean_a) / spread
