r"""A support vector machine with a Gaussian kernel, made linear by a Nystroem map, with calibrated log-odds.

With M landmarks l_m and the kernel k(a, b) = exp(-gamma |a - b|^2) on standardised features, the map is

    phi(x) = K^(-1/2) (k(x, l_1), ..., k(x, l_M)),    K_mn = k(l_m, l_n)

(Williams and Seeger, NIPS 2000), so that phi(a) . phi(b) is k(a, b) where the landmarks reach. A linear SVM on phi is
then trained on everything in seconds, and its decision becomes log-odds by Platt's scaling, fitted on decisions that
were made by machines which had not seen the sample (Platt, 1999).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from mitoseg.extras import import_extra

FloatArray = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

LIMIT = 5.0
"""Standard deviations at which features are cut: an outlier would be far from every landmark."""
FOLDS = 3
MOST = 40_000
"""Background samples that a plane is fitted to; they stand for the others."""


@dataclass(frozen=True)
class KernelMap:
    """phi, as arrays.

    Attributes:
        mean: (F,) of the features.
        scale: (F,) their standard deviations.
        landmarks: (M, F) standardised.
        projection: (M, M), K^(-1/2).
        gamma: Of the kernel, shape ().
    """

    mean: FloatArray
    scale: FloatArray
    landmarks: FloatArray
    projection: FloatArray
    gamma: FloatArray

    @classmethod
    def learn(
        cls, features: FloatArray, label: Bools, count: int, gamma: float, rng: np.random.Generator
    ) -> KernelMap:
        """Choose landmarks, half of them foreground.

        Args:
            features: (N, F).
            label: (N,).
            count: Of landmarks, at most.
            gamma: In units of 1 / F.
            rng: Chooses.
        """
        halves = [np.flatnonzero(label == side) for side in (False, True)]
        chosen = np.concatenate([rng.permutation(half)[: count // 2] for half in halves])
        mean, scale = features.mean(0), features.std(0) + np.float32(1e-6)
        unit = np.clip((features[chosen] - mean) / scale, -LIMIT, LIMIT)
        factor = np.float32(gamma / features.shape[1])
        value, vector = eigh(_gaussian(unit, unit, factor).astype(np.float64))
        root = (vector / np.sqrt(np.maximum(value, 1e-6))) @ vector.T
        return cls(mean, scale, unit, root.astype(np.float32), np.array(factor))

    def __call__(self, features: FloatArray, chunk: int = 50_000) -> FloatArray:
        """Phi of many samples, (N, M) float32."""
        parts = []
        for start in range(0, len(features), chunk):
            unit = np.clip((features[start : start + chunk] - self.mean) / self.scale, -LIMIT, LIMIT)
            parts.append(_gaussian(unit, self.landmarks, self.gamma) @ self.projection)
        return np.concatenate(parts) if parts else np.zeros((0, len(self.landmarks)), np.float32)


def _gaussian(a: FloatArray, b: FloatArray, gamma: npt.NDArray[np.float32] | np.float32) -> FloatArray:
    square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
    result: FloatArray = np.exp(-gamma * np.maximum(square, 0)).astype(np.float32)
    return result


@dataclass(frozen=True)
class KernelMachine:
    """The map, and a plane in it.

    Attributes:
        map: phi.
        coefficients: (M,), of log-odds.
        offset: Shape ().
    """

    map: KernelMap
    coefficients: FloatArray
    offset: FloatArray

    def __call__(self, features: FloatArray) -> FloatArray:
        """Log-odds (N,) of foreground."""
        result: FloatArray = self.map(features) @ self.coefficients + self.offset
        return result

    def arrays(self) -> dict[str, FloatArray]:
        """All of it, by name."""
        return {**vars(self.map), "coefficients": self.coefficients, "offset": self.offset}

    @classmethod
    def restored(cls, arrays: Mapping[str, FloatArray]) -> KernelMachine:
        """The machine that had these arrays."""
        own = dict(arrays)
        coefficients, offset = own.pop("coefficients"), own.pop("offset")
        return cls(KernelMap(**own), coefficients, offset)


def train_machine(
    features: FloatArray,
    label: Bools,
    weight: npt.NDArray[np.floating],
    *,
    landmarks: int,
    penalty: float = 1.0,
    gamma: float = 0.5,
    seed: int = 0,
) -> tuple[KernelMachine, FloatArray]:
    """Train, and give the log-odds that machines say of samples they have not seen.

    Args:
        features: (N, F), in an order in which neighbours resemble each other: folds are runs of it.
        label: (N,).
        weight: (N,) of the samples.
        landmarks: How many.
        penalty: C of the SVM.
        gamma: Of the kernel, in units of 1 / F.
        seed: Of the landmarks.

    Returns:
        The machine, and (N,) log-odds out of fold.
    """
    kernel = KernelMap.learn(features, label, landmarks, gamma, np.random.default_rng(seed))
    mapped = kernel(features)
    fold = _folds(label)
    held_out = np.empty(len(label))
    for k in range(FOLDS):
        plane, offset = _plane(mapped[fold != k], label[fold != k], weight[fold != k], penalty)
        held_out[fold == k] = mapped[fold == k] @ plane + offset
    platt = import_extra("sklearn.linear_model", "scikit-learn", "classical").LogisticRegression(C=1e3)
    platt.fit(held_out[:, None], label, sample_weight=weight)
    slope, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    plane, offset = _plane(mapped, label, weight, penalty)
    machine = KernelMachine(kernel, (slope * plane).astype(np.float32), np.array(slope * offset + shift, np.float32))
    return machine, (slope * held_out + shift).astype(np.float32)


def _folds(label: Bools) -> npt.NDArray[np.intp]:
    """Runs of samples, each with its share of the foreground."""
    rank = np.cumsum(label) - 0.5
    fold: npt.NDArray[np.intp] = np.clip(rank * FOLDS / max(label.sum(), 1), 0, FOLDS - 1).astype(np.intp)
    return fold


def _plane(
    mapped: FloatArray, label: Bools, weight: npt.NDArray[np.floating], penalty: float
) -> tuple[npt.NDArray[np.float64], float]:
    """Normal and offset of a linear SVM (squared hinge), whose classes weigh the same in all."""
    other = np.flatnonzero(~label)
    chosen = np.concatenate([np.flatnonzero(label), other[:: max(1, len(other) // MOST)]])
    mapped, label, weight = mapped[chosen], label[chosen], weight[chosen]
    balanced = weight / np.where(label, weight[label].sum(), weight[~label].sum())
    svm = import_extra("sklearn.svm", "scikit-learn", "classical").LinearSVC(
        C=penalty, dual=False, intercept_scaling=5.0
    )
    svm.fit(mapped, label, sample_weight=balanced / balanced.mean())
    return svm.coef_[0], float(svm.intercept_[0])
