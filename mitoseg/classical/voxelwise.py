"""Classifiers of single voxels: a random forest, and boosted trees with a graph cut.

Trees are grown from features of as many voxels of mitochondria as of background, drawn evenly from the labelled part
of a volume; what that balance adds to their log-odds is taken out of the probabilities again.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from mitoseg.classical.features import FloatArray, ImageLike, VoxelFeatures, as_volume, read_with_halo, slab_depth
from mitoseg.classical.graph_cut import Mask, cut_in_parts, pair_weights, unary_costs
from mitoseg.control_groups import usable_cores
from mitoseg.errors import UserError, import_extra
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import Array, Volume, check_same_shape
from mitoseg.volumes.labels import IGNORED

ROWS = 2**15  # voxels that go through the trees together: their features stay in the cache from tree to tree
Floats = npt.NDArray[np.float64]


@dataclass
class VoxelClassifier(ABC):
    """A classifier of voxels by their features, in the manner of scikit-learn's estimators.

    Its answers do not depend on ``OMP_NUM_THREADS``, the threads that it uses.
    """

    voxel_size: tuple[float, float, float] = (5.0, 5.0, 5.0)  # (z, y, x) in nm, of all volumes that it is given
    sigmas: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0, 80.0)  # scales of the features, in nm
    samples: int = 400_000  # voxels to learn from, half of each class
    seed: int = 0  # of the sample and of the trees
    threshold: float = field(default=0.5, init=False)  # probability at and above which a voxel is foreground, as tuned
    fitted: tuple[Any, float] | None = field(default=None, init=False, repr=False)
    """Scikit-learn's model, and what its log-odds are too high by (`Samples.shift`)."""

    def __post_init__(self) -> None:
        self.features = VoxelFeatures(self.sigmas, self.voxel_size)
        self.sigmas, self.voxel_size = self.features.sigmas, self.features.voxel_size
        check_whole("samples", self.samples, 2)
        check_whole("seed", self.seed, 0)

    @abstractmethod
    def _grow(self, samples: Samples) -> Any:  # noqa: ANN401 (scikit-learn has no types)
        """Scikit-learn's model of a balanced sample."""

    @abstractmethod
    def _evaluate(self, model: Any, features_fn: FloatArray, shift: float) -> Floats:  # noqa: ANN401
        """Probability (N,) under the volume's prior of voxels with features (F, N)."""

    def fit(self, image_zyx: ImageLike, label_zyx: ImageLike) -> Self:
        """Learn from labels 0, 1 (mitochondrion) and 255 (ignored); slices without labels cost nothing."""
        image, label = as_volume(image_zyx), as_volume(label_zyx)
        rng = np.random.default_rng(self.seed)
        samples = draw_samples(image, label, self.features, self.samples, rng, self._threads)
        self.fitted = self._grow(samples), samples.shift
        return self

    def predict_proba(self, image_zyx: ImageLike) -> FloatArray:
        """Probability of mitochondrion, float32 (Z, Y, X)."""
        volume = as_volume(image_zyx)
        return self._probability(volume, volume.box)

    def predict(self, image_zyx: ImageLike) -> npt.NDArray[np.uint8]:
        """The mask, 0 and 1."""
        return (self.predict_proba(image_zyx) >= self.threshold).astype(np.uint8)

    def tune(self, image_zyx: ImageLike, label_zyx: ImageLike) -> object:
        """Set the threshold by the foreground Jaccard index of labelled slices, which no training has seen.

        The image comes with the tissue around the slices, whose labels are 255: it gives their voxels a context.
        """
        self.threshold = best_threshold(self._validation(image_zyx, label_zyx)).threshold
        return self

    @property
    def _threads(self) -> int:
        return int(os.environ.get("OMP_NUM_THREADS") or 0) or usable_cores()

    def _probability(self, volume: Volume, box: Box) -> FloatArray:
        """Probability of the voxels of a box."""
        if self.fitted is None:
            raise UserError(f"{type(self).__name__} is not trained", None, "call fit before")
        prob_zyx = np.empty(box.shape, np.float32)
        for slab in slabs(box, slab_depth(volume, self.features)):
            found = self.features.inside(read_with_halo(volume, slab, self.features.halo), self._threads)
            prob_n = self._evaluate(self.fitted[0], found.reshape(len(found), -1), self.fitted[1])
            prob_zyx[slab.inside(box).slices] = prob_n.reshape(slab.shape)
        return prob_zyx

    def _validation(self, image_zyx: ImageLike, label_zyx: ImageLike) -> Iterator[Pair]:
        """Probability and labels of each run of slices that holds labels."""
        image, label = as_volume(image_zyx), as_volume(label_zyx)
        check_same_shape(image, label)
        for run in labelled_runs(label):
            yield self._probability(image, run), label.read(run).astype(np.uint8)


@dataclass
class ForestClassifier(VoxelClassifier):
    """Pixel classification the ilastik way (Berg et al., Nature Methods 16, 2019; Breiman, Machine Learning 45, 2001).

    Filters of the image at several scales, a random forest of 100 trees, the mean vote as the probability. Where ours
    differs: ilastik learns from a few strokes of a brush, ours from a sample of a labelled volume, half of each class,
    whose balance is taken out of the probabilities again; its scales are pixels, ours nm, up to context of 80 nm; its
    trees grow to the end, ours stop at leaves of ``leaf`` voxels, which is no worse and ten times smaller. Each voxel
    is decided alone: there is no regularisation, so this is its own unary-only ablation.
    """

    trees: int = 100
    leaf: int = 5  # least number of voxels of a leaf

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("trees", self.trees, 1)
        check_whole("leaf", self.leaf, 1)

    def _grow(self, samples: Samples) -> Any:  # noqa: ANN401
        ensemble = import_extra("sklearn.ensemble", "scikit-learn", "classical")
        options = {"max_features": "sqrt", "n_jobs": self._threads, "random_state": self.seed}
        forest = ensemble.RandomForestClassifier(self.trees, min_samples_leaf=self.leaf, **options)
        return forest.fit(samples.features_nf, samples.label_n)

    def _evaluate(self, model: Any, features_fn: FloatArray, shift: float) -> Floats:  # noqa: ANN401
        # not predict_proba: its threads add up the trees in any order, which changes the last bit
        trees = [estimator.tree_ for estimator in model.estimators_]
        vote_n = np.empty(features_fn.shape[1])

        def fill(begin: int) -> None:
            x_nf = np.ascontiguousarray(features_fn[:, begin : begin + ROWS].T)
            vote_n[begin : begin + ROWS] = sum(tree.predict(x_nf)[:, 1] / len(trees) for tree in trees)

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(fill, range(0, len(vote_n), ROWS)))  # raises what a thread has raised
        return np.asarray(vote_n / (vote_n + (1 - vote_n) * np.exp(shift)))


SMOOTHNESS = (0.5, 1.0, 2.0, 4.0, 8.0)
STEP = 0.5  # of the threshold's log-odds while it is tuned


@dataclass
class NeilaSegmenter(VoxelClassifier):
    """Fast segmentation of mitochondria in serial EM, after Marquez Neila et al.

    Marquez Neila, Baumela, Gonzalez-Soriano, Rodriguez, DeFelipe, Merchan-Perez: A fast method for the segmentation of
    synaptic junctions and mitochondria in serial electron microscopic images of the brain. Neuroinformatics 14,
    235-250, 2016. Its steps, and where ours differs:

    1. Gaussian derivatives up to second order at several scales, which do not change when the tissue is turned. Ours
       are three-dimensional and in nm, see `VoxelFeatures`.
    2. A fast probabilistic classifier. Ours is a sum of boosted trees over binned features (scikit-learn's histogram
       boosting, after Ke et al., LightGBM, NIPS 2017), learned from a sample with as many voxels of each class, whose
       balance is taken out of the log-odds again. It is not the classifier of the paper.
    3. A conditional random field that is aware of anisotropy, minimised by graph cuts in overlapping partitions. Ours
       has two classes, so that the cut of each part is exact, and pairs weighted as the surface in nm2.
    4. Smoothing of the surface, which ours leaves out.

    """

    trees: int = 200
    leaves: int = 63  # of a tree
    smoothness: float = field(default=1.0, init=False)  # cost of unlike neighbours in log-odds, as tuned
    cut_threshold: float = field(default=0.5, init=False)  # that the regularisation starts from, as tuned

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("trees", self.trees, 1)
        check_whole("leaves", self.leaves, 2)

    def _grow(self, samples: Samples) -> Any:  # noqa: ANN401
        ensemble = import_extra("sklearn.ensemble", "scikit-learn", "classical")
        boosting = ensemble.HistGradientBoostingClassifier(
            max_iter=self.trees, max_leaf_nodes=self.leaves, early_stopping=False, random_state=self.seed
        )
        return boosting.fit(samples.features_nf, samples.label_n)

    def _evaluate(self, model: Any, features_fn: FloatArray, shift: float) -> Floats:  # noqa: ANN401
        parts = (features_fn[:, begin : begin + ROWS] for begin in range(0, features_fn.shape[1], ROWS))
        # row by row in memory, which is a fifth faster
        log_odds = [model.decision_function(np.ascontiguousarray(part.T, np.float64)) for part in parts]
        prob_n: Floats = expit(np.concatenate(log_odds) - shift)
        return prob_n

    def predict(self, image_zyx: ImageLike, *, regularize: bool = True) -> npt.NDArray[np.uint8]:
        """The mask, uint8 of 0 and 1; see `segment`."""
        return self.segment(self.predict_proba(image_zyx), regularize=regularize)

    def segment(
        self, prob_zyx: FloatArray, threshold: float | None = None, *, regularize: bool = True
    ) -> npt.NDArray[np.uint8]:
        """The mask of a probability map.

        Without ``regularize`` each voxel is decided alone, by `threshold` (the unary-only ablation).
        """
        if not regularize:
            return (prob_zyx >= (self.threshold if threshold is None else threshold)).astype(np.uint8)
        start = self.cut_threshold if threshold is None else threshold
        return self._cut(prob_zyx, self.smoothness, start).astype(np.uint8)

    def tune(
        self, image_zyx: ImageLike, label_zyx: ImageLike, smoothness: Sequence[float] = SMOOTHNESS
    ) -> list[Trial]:
        """Set the thresholds and the smoothness by the foreground Jaccard index of labelled slices.

        For each smoothness the threshold climbs from the best one of the smoothness before, until it gets no better;
        that ends when a smoothness is worse than the one before. Gives all that was tried, the voxels alone first.
        """
        pairs = list(self._validation(image_zyx, label_zyx))
        alone = best_threshold(pairs)
        best, trials = alone, [alone]
        for weight in smoothness:
            found = self._climb(pairs, weight, best.threshold)
            trials += found
            leader = max(found, key=lambda t: t.jaccard)
            if leader.jaccard < best.jaccard:
                break
            best = leader
        self.threshold, self.cut_threshold, self.smoothness = alone.threshold, best.threshold, best.smoothness
        return trials

    def _climb(self, pairs: Sequence[Pair], smoothness: float, threshold: float) -> list[Trial]:
        """Trials of one smoothness, up or down from a threshold as long as it pays."""
        trials = [self._try(pairs, smoothness, threshold)]
        for step in (-STEP, STEP):
            best = trials[0]
            while best.threshold > 1e-3 and best.threshold < 1 - 1e-3:
                trial = self._try(pairs, smoothness, float(expit(logit(best.threshold) + step)))
                trials.append(trial)
                if trial.jaccard <= best.jaccard:
                    break
                best = trial
            if best is not trials[0]:
                break
        return trials

    def _try(self, pairs: Sequence[Pair], smoothness: float, threshold: float) -> Trial:
        masks = ((self._cut(prob_zyx, smoothness, threshold), label_zyx) for prob_zyx, label_zyx in pairs)
        return Trial(smoothness, threshold, jaccard(masks))

    def _cut(self, prob_zyx: FloatArray, smoothness: float, threshold: float) -> Mask:
        weights = pair_weights(smoothness, self.voxel_size)
        return cut_in_parts(unary_costs(prob_zyx, threshold), weights)


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is not a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} is not a whole number from {least} up", value, f"give {least} or more")


@dataclass(frozen=True)
class Samples:
    """Voxels to learn from."""

    features_nf: FloatArray
    label_n: npt.NDArray[np.bool_]  # mitochondrion or not
    prior: float  # share of mitochondria among the labelled voxels of the volume

    @property
    def shift(self) -> float:
        """What the log-odds of a classifier of these samples are too high by: both classes' share, less the prior's.

        logit' = logit - shift = logit + log(pi / (1 - pi)) - log(pi_t / (1 - pi_t)), with pi the prior and pi_t the
        share among the samples.
        """
        share = float(self.label_n.mean())
        return float(np.log(share / (1 - share)) - np.log(self.prior / (1 - self.prior)))


def labelled_runs(label: Volume) -> list[Box]:
    """Runs of slices that hold labels at all, first to last."""
    known = []
    for slab in slabs(label.box, 1):
        values = np.flatnonzero(np.bincount(_as_labels(label.read(slab), label.path).ravel(), minlength=256))
        known.append(bool((values != IGNORED).any()))
    ends = np.flatnonzero(np.diff(np.array([False, *known, False], np.int8)))
    if not len(ends):
        raise UserError("nothing is labelled", label.path, "give some voxels 0 or 1; 255 is ignored")
    z0, z1 = ends[::2].tolist(), ends[1::2].tolist()
    return [Box((a, *label.box.start[1:]), (b, *label.box.stop[1:])) for a, b in zip(z0, z1, strict=True)]


def draw_samples(
    image: Volume, label: Volume, features: VoxelFeatures, count: int, rng: np.random.Generator, threads: int = 1
) -> Samples:
    """Draw ``count`` voxels, half of them of mitochondria, all of those if there are fewer.

    They do not depend on how many slices fit into memory together.
    """
    check_same_shape(image, label)
    runs = labelled_runs(label)
    read = (label.read(slab).ravel().astype(np.uint8) for run in runs for slab in slabs(run, 1))
    totals = np.sum([np.bincount(label_n, minlength=2)[:2] for label_n in read], axis=0).tolist()
    if min(totals) == 0:
        what = f"the labels hold {totals[1]} voxels of mitochondria and {totals[0]} of background"
        raise UserError(what, label.path, "give both; 0 is background, 1 mitochondrion, 255 is ignored")
    taken = [min(total, count // 2) for total in totals]  # of a class that is rarer all, and no number is drawn
    ranks = [
        np.arange(n) if n == total else np.sort(rng.choice(total, n, replace=False, shuffle=False)).astype(np.int64)
        for n, total in zip(taken, totals, strict=True)
    ]
    rows: list[FloatArray] = []
    truth: list[npt.NDArray[np.bool_]] = []
    for slab, chosen, label_n in _chosen(label, runs, ranks, slab_depth(image, features)):
        found = features.inside(read_with_halo(image, slab, features.halo), threads)
        rows.append(np.ascontiguousarray(found.reshape(len(found), -1)[:, chosen].T))
        truth.append(label_n)
    return Samples(np.concatenate(rows), np.concatenate(truth), totals[1] / sum(totals))


def _as_labels(label_zyx: Array, path: str) -> npt.NDArray[np.uint8]:
    if label_zyx.dtype == bool:
        return label_zyx.astype(np.uint8)
    found = label_zyx.astype(np.uint8)
    if not np.array_equal(found, label_zyx) or ((found > 1) & (found != IGNORED)).any():
        raise UserError("labels other than 0, 1 and 255", path, "map them with mitoseg.volumes.map_labels")
    return found


def _chosen(
    label: Volume, runs: list[Box], ranks: list[npt.NDArray[np.int64]], depth: int
) -> Iterator[tuple[Box, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """Slabs that hold samples, with the samples' flat index in the slab and their label, in order."""
    passed = [0, 0]
    for slab in (s for run in runs for s in slabs(run, depth)):
        label_n = label.read(slab).ravel()
        taken = []
        for value in (0, 1):
            places = np.flatnonzero(label_n == value)
            low, high = np.searchsorted(ranks[value], [passed[value], passed[value] + len(places)])
            taken.append(places[ranks[value][low:high] - passed[value]])
            passed[value] += len(places)
        chosen = np.sort(np.concatenate(taken))
        if len(chosen):
            yield slab, chosen, label_n[chosen] == 1


BINS = 2000

Pair = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
"""``prob_zyx``, and ``label_zyx`` of 0, 1 and 255 (ignored)."""


@dataclass(frozen=True)
class Trial:
    """What a setting gave on validation."""

    smoothness: float  # of the graph cut, 0 without one
    threshold: float  # probability at and above which a voxel alone is foreground
    jaccard: float  # of the foreground, TP / (TP + FP + FN), pooled over all voxels


def best_threshold(pairs: Iterable[Pair]) -> Trial:
    """The threshold of the largest foreground Jaccard index, to 1 / `BINS`, over the voxels of all pairs together."""
    counts = np.zeros((2, BINS))
    for prob_zyx, label_zyx in pairs:
        bins = np.minimum(prob_zyx * np.float32(BINS), BINS - 1).astype(np.int32)
        for value in (0, 1):
            counts[value] += np.bincount(bins[label_zyx == value], minlength=BINS)
    # the voxels of bin k and above are foreground
    false, true = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    if true[0] == 0:
        raise UserError("the validation labels hold no mitochondria", None, "give slabs that hold some")
    jaccard = true / (true[0] + false)
    best = max(int(jaccard.argmax()), 1)
    return Trial(0.0, best / BINS, float(jaccard[best]))


def jaccard(pairs: Iterable[tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]]) -> float:
    """Foreground Jaccard index of masks, pooled over all voxels whose label is not 255."""
    both = either = 0
    for mask_zyx, label_zyx in pairs:
        truth, found = label_zyx == 1, mask_zyx & (label_zyx != IGNORED)
        both += int((truth & found).sum())
        either += int((truth | found).sum())
    return both / either if either else 0.0
