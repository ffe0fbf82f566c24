r"""Supervoxels, a kernel machine and a graph cut.

After A. Lucchi, K. Smith, R. Achanta, G. Knott, P. Fua, "Supervoxel-based segmentation of mitochondria in EM image
stacks with learned shape features", IEEE Transactions on Medical Imaging 31(2), 474-486, 2012. The energy of a
labelling y of the supervoxels is

    E(y) = sum_i v_i (t - logit p_i) y_i + lambda sum_(i,j) a_ij (-log p_ij) [y_i != y_j],

v_i the volume of a supervoxel and a_ij the area that two share (both in units of their mean), p_i the probability that
it is mitochondrion, p_ij that the two lie on different sides of a mitochondrion's boundary, t the threshold. Ours
differs: SLIC sees the learned maps beside the grey value; Gaussian
derivatives stand for steerable filters, and their means are features too; the pairwise machine tells "different sides"
from "same side", theirs has a class for either order of the sides; lambda and t are tuned by the Jaccard index on
supervoxels held out; and the kernel of the SVM is approximated. With M landmarks l_m and the kernel k(a, b) =
exp(-gamma |a - b|^2) on standardised features, the map is

    phi(x) = K^(-1/2) (k(x, l_1), ..., k(x, l_M)),    K_mn = k(l_m, l_n)

(Williams and Seeger, NIPS 2000), so that phi(a) . phi(b) is k(a, b) where the landmarks reach. A linear SVM on phi is
trained on everything in seconds, and its decision becomes log-odds by Platt's scaling, fitted on decisions that were
made by machines which had not seen the sample (Platt, 1999).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.special import expit

from mitoseg.classical.describing import Description, RegionDescriber
from mitoseg.classical.features import FloatArray, ImageLike, as_volume
from mitoseg.classical.graph_cut import cut_ladder
from mitoseg.errors import UserError, import_extra
from mitoseg.volumes.labels import IGNORED

Counts = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PAIR_LANDMARKS = 128
PAIRS = 60_000  # pairs of background that the pairwise machine learns from, at most


@dataclass
class SupervoxelSegmenter:
    """Lucchi et al. 2012; see `mitoseg.classical.supervoxels` for where it differs."""

    voxel_size: tuple[float, float, float] = (5.0, 5.0, 5.0)  # (z, y, x) in nm
    region_size: float = 35.0  # edge in nm of a cube as large as a supervoxel is on average
    landmarks: int = 400  # of the kernel map
    regularize: bool = True  # whether neighbours count; without them this is the unary-only ablation
    seed: int = 0
    describer: RegionDescriber | None = field(default=None, repr=False)
    """Makes and describes supervoxels; one that is fitted is used as it is, so that two methods can share it."""
    pairwise_weight_: float = field(default=1.0, init=False)  # of the pairs against the unary terms, as tuned
    threshold_: float = field(default=0.5, init=False)  # probability from which on it is foreground, as tuned
    unary_threshold_: float = field(default=0.5, init=False)  # the same without neighbours
    unary_: KernelMachine | None = field(default=None, init=False, repr=False)  # of p_i, once fitted
    pairwise_: KernelMachine | None = field(default=None, init=False, repr=False)  # of p_ij

    def __post_init__(self) -> None:
        self.voxel_size = tuple(float(v) for v in self.voxel_size)  # type: ignore[assignment]
        made = RegionDescriber(self.voxel_size, self.region_size, seed=self.seed)
        self._describer = made if self.describer is None else self.describer
        if self.landmarks < 2:
            raise UserError("too few landmarks", self.landmarks, "give 2 or more")

    @property
    def threshold(self) -> float:
        """The one that belongs to ``regularize``."""
        return self.threshold_ if self.regularize else self.unary_threshold_

    def fit(self, image_zyx: ImageLike, label_zyx: ImageLike) -> Self:
        """Learn everything from labels 0, 1 and 255 (ignored), and tune on supervoxels that were held out."""
        if self._describer.maps_ is None:
            self._describer.fit(image_zyx, label_zyx)
        description = self._describer.describe(image_zyx)
        fg, known = region_labels(description, label_zyx)
        if not 0 < (2 * fg > known).sum() < (known > 0).sum():
            raise UserError("the labels lack mitochondria or background", None, "give more of the volume")
        held_out, pair_cost = self._learn(description, fg, known)
        self._tune(description, held_out, pair_cost, fg, known)
        return self

    def tune(self, image_zyx: ImageLike, label_zyx: ImageLike) -> Self:
        """Choose threshold and pairwise weight by the foreground Jaccard index.

        Rays and neighbours look beyond a slab: give the image with some tissue around it, labelled 255.
        """
        description = self._describer.describe(image_zyx)
        self._tune(description, *self._potentials(description), *region_labels(description, label_zyx))
        return self

    def predict_proba(self, image_zyx: ImageLike) -> FloatArray:
        """Probability of mitochondrion, (Z, Y, X) float32: the same all over a supervoxel.

        With ``regularize`` it is the probability at which the graph cut changes its mind, so that at every threshold
        of `LEVELS` the mask is exactly the cut there.
        """
        description = self._describer.describe(image_zyx)
        log_odds, pair_cost = self._potentials(description)
        if self.regularize:
            log_odds = _cut(description, log_odds, self.pairwise_weight_ * pair_cost)
        probability: FloatArray = expit(log_odds.astype(np.float64)).astype(np.float32)[description.region_zyx]
        return probability

    def predict(self, image_zyx: ImageLike) -> npt.NDArray[np.uint8]:
        """The mask, (Z, Y, X) uint8 of 0 and 1."""
        return (self.predict_proba(image_zyx) >= np.float32(self.threshold)).astype(np.uint8)

    def _learn(self, description: Description, fg: Counts, known: Counts) -> tuple[FloatArray, FloatArray]:
        """Learn from supervoxels; log-odds (N,) of machines that had not seen them, and pair costs (E,)."""
        self.unary_, held_out = learn_unary(description, fg, known, self.landmarks, self.seed)
        self.pairwise_ = learn_pairwise(description, fg, known, self.seed)
        return held_out, pair_costs(self.pairwise_, description)

    def _potentials(self, description: Description) -> tuple[FloatArray, FloatArray]:
        """Log-odds (N,) and pair costs (E,), none below zero."""
        unary, pairwise = self._machines
        return unary(description.features), pair_costs(pairwise, description)

    @property
    def _machines(self) -> tuple[KernelMachine, KernelMachine]:
        if self.unary_ is None or self.pairwise_ is None:
            raise UserError("the classical method is not fitted", None, "call fit first")
        return self.unary_, self.pairwise_

    def _tune(
        self, description: Description, log_odds: FloatArray, pair_cost: FloatArray, fg: Counts, known: Counts
    ) -> None:
        level, _ = best_level(log_odds, fg, known)
        self.unary_threshold_, best = _threshold(level), -1.0
        for weight in WEIGHTS if self.regularize else ():
            level, score = best_level(_cut(description, log_odds, weight * pair_cost), fg, known)
            if score > best:
                self.pairwise_weight_, self.threshold_, best = weight, _threshold(level), score


def learn_unary(
    description: Description, fg: Counts, known: Counts, landmarks: int, seed: int
) -> tuple[KernelMachine, FloatArray]:
    """The machine of p_i, and log-odds (N,) of machines that had not seen the supervoxel.

    A supervoxel weighs as many voxels as it holds of one class more than of the other.
    """
    use = known > 0
    label, weight = 2 * fg > known, np.abs(2 * fg - known) / max(known.mean(), 1e-9)
    machine, held_out = train_machine(
        description.features[use], label[use], weight[use] + 1e-6, landmarks=landmarks, seed=seed
    )
    log_odds = np.zeros(len(known), np.float32)
    log_odds[use] = held_out
    if not use.all():
        log_odds[~use] = machine(description.features[~use])
    return machine, log_odds


def learn_pairwise(description: Description, fg: Counts, known: Counts, seed: int) -> KernelMachine:
    """The machine of p_ij; pairs that differ weigh as much as those that do not, of those fg as much as bg."""
    label = (2 * fg > known)[description.graph.pairs]
    use = (known > 0)[description.graph.pairs].all(1)
    kinds = [use & (label.sum(1) == k) for k in (1, 2, 0)]
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(kind) for kind in kinds]
    members[2] = rng.permutation(members[2])[:PAIRS]
    shares = [share / max(len(m), 1) for m, share in zip(members, (2, 1, 1), strict=True)]
    weight = np.repeat(shares, [len(m) for m in members])
    chosen = np.concatenate(members)
    order = np.argsort(chosen)
    chosen, weight = chosen[order], weight[order] * len(order) / 4
    differ = kinds[0][chosen]
    machine, _ = train_machine(description.pair_features[chosen], differ, weight, landmarks=PAIR_LANDMARKS, seed=seed)
    return machine


def pair_costs(machine: KernelMachine, description: Description) -> FloatArray:
    """a_ij (-log p_ij) of every pair, (E,) float32, never below zero."""
    area = description.graph.area / max(float(description.graph.area.mean()), 1e-9)
    cost: FloatArray = (area * np.logaddexp(0, -machine(description.pair_features))).astype(np.float32)
    return cost


LEVELS = np.linspace(-6.0, 4.0, 21)  # log-odds at which the graph is cut; a threshold is one of them
WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0)  # pairwise weights that `tune` tries


def region_labels(description: Description, label_zyx: ImageLike) -> tuple[Counts, Counts]:
    """Foreground and labelled voxels of each supervoxel."""
    label = as_volume(label_zyx)
    if label.shape != description.region_zyx.shape:
        remedy = f"give labels of shape {description.region_zyx.shape}"
        raise UserError("image and labels differ in shape", label.shape, remedy)
    region, label_n, count = description.region_zyx.ravel(), label.read().ravel(), len(description.size)
    known = label_n != IGNORED
    fg = np.bincount(region[known & (label_n != 0)], minlength=count)
    return fg, np.bincount(region[known], minlength=count)


def best_level(log_odds: FloatArray, fg: Counts, known: Counts) -> tuple[float, float]:
    """The level of `LEVELS` with the best foreground Jaccard index over all labelled voxels, and that index."""
    sides = [log_odds >= level for level in LEVELS]
    scores = [fg[s].sum() / max(known[s].sum() + fg[~s].sum(), 1) for s in sides]
    best = int(np.argmax(scores))
    return float(LEVELS[best]), float(scores[best])


def _cut(description: Description, log_odds: FloatArray, weight: FloatArray) -> FloatArray:
    """Log-odds after the ladder of cuts."""
    size = description.size / description.size.mean()
    return cut_ladder(log_odds, size, description.graph.pairs, weight, LEVELS).astype(np.float32)


def _threshold(level: float) -> float:
    """A level as a probability, rounded as the map's values are."""
    return float(np.float32(expit(level)))


LIMIT = 5.0  # standard deviations at which features are cut: an outlier would be far from every landmark
GAMMA = 0.5  # of the kernel, in units of 1 / F
FOLDS = 3
MOST = 40_000  # background samples that a plane is fitted to; they stand for the others


@dataclass(frozen=True)
class KernelMachine:
    """The map phi, and a plane in it."""

    mean: FloatArray  # (F,) of the features
    scale: FloatArray  # (F,) their standard deviations
    landmarks: FloatArray  # (M, F) standardised
    projection: FloatArray  # (M, M), K^(-1/2)
    gamma: FloatArray  # of the kernel, shape ()
    coefficients: FloatArray  # (M,), of log-odds
    offset: FloatArray  # shape ()

    def map(self, features: FloatArray, chunk: int = 50_000) -> FloatArray:
        """Phi (N, M) of many samples."""
        parts = [np.zeros((0, len(self.landmarks)), np.float32)]
        for start in range(0, len(features), chunk):
            unit = np.clip((features[start : start + chunk] - self.mean) / self.scale, -LIMIT, LIMIT)
            parts.append(_gaussian(unit, self.landmarks, self.gamma) @ self.projection)
        return np.concatenate(parts)

    def __call__(self, features: FloatArray) -> FloatArray:
        """Log-odds (N,) of foreground."""
        result: FloatArray = self.map(features) @ self.coefficients + self.offset
        return result


def choose_landmarks(features: FloatArray, label: Bools, count: int, rng: np.random.Generator) -> KernelMachine:
    """A machine without a plane, whose landmarks are samples (N, F), half of them foreground; see `train_machine`."""
    halves = [np.flatnonzero(label == side) for side in (False, True)]
    chosen = np.concatenate([rng.permutation(half)[: count // 2] for half in halves])
    mean, scale = features.mean(0), features.std(0) + np.float32(1e-6)
    unit = np.clip((features[chosen] - mean) / scale, -LIMIT, LIMIT)
    factor = np.float32(GAMMA / features.shape[1])
    value, vector = eigh(_gaussian(unit, unit, factor).astype(np.float64))
    root = (vector / np.sqrt(np.maximum(value, 1e-6))) @ vector.T
    no_plane = (np.zeros(len(chosen), np.float32), np.zeros((), np.float32))
    return KernelMachine(mean, scale, unit, root.astype(np.float32), np.array(factor), *no_plane)


def _gaussian(a: FloatArray, b: FloatArray, gamma: npt.NDArray[np.float32] | np.float32) -> FloatArray:
    square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
    result: FloatArray = np.exp(-gamma * np.maximum(square, 0)).astype(np.float32)
    return result


def train_machine(
    features: FloatArray,
    label: Bools,
    weight: npt.NDArray[np.floating],
    *,
    landmarks: int,
    seed: int,
) -> tuple[KernelMachine, FloatArray]:
    """The machine, and the log-odds (N,) that machines say of samples they have not seen.

    Samples (N, F) are in an order in which neighbours resemble each other: folds are runs of it.
    """
    kernel = choose_landmarks(features, label, landmarks, np.random.default_rng(seed))
    mapped = kernel.map(features)
    rank = np.cumsum(label) - 0.5  # so that each fold has its share of the foreground
    fold = np.clip(rank * FOLDS / max(label.sum(), 1), 0, FOLDS - 1).astype(np.intp)
    held_out = np.empty(len(label))
    for k in range(FOLDS):
        plane, offset = _plane(mapped[fold != k], label[fold != k], weight[fold != k])
        held_out[fold == k] = mapped[fold == k] @ plane + offset
    platt = import_extra("sklearn.linear_model", "scikit-learn", "classical").LogisticRegression(C=1e3)
    platt.fit(held_out[:, None], label, sample_weight=weight)
    slope, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    plane, offset = _plane(mapped, label, weight)
    machine = replace(
        kernel, coefficients=(slope * plane).astype(np.float32), offset=np.array(slope * offset + shift, np.float32)
    )
    return machine, (slope * held_out + shift).astype(np.float32)


def _plane(
    mapped: FloatArray, label: Bools, weight: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.float64], float]:
    """Normal and offset of a linear SVM (squared hinge), whose classes weigh the same in all."""
    other = np.flatnonzero(~label)
    chosen = np.concatenate([np.flatnonzero(label), other[:: max(1, len(other) // MOST)]])
    mapped, label, weight = mapped[chosen], label[chosen], weight[chosen]
    balanced = weight / np.where(label, weight[label].sum(), weight[~label].sum())
    svm = import_extra("sklearn.svm", "scikit-learn", "classical").LinearSVC(dual=False, intercept_scaling=5.0)
    svm.fit(mapped, label, sample_weight=balanced / balanced.mean())
    return svm.coef_[0], float(svm.intercept_[0])
