"""Voxels classified fast, then regularised by a conditional random field that knows of the voxels' shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from mitoseg.classical.features import FloatArray, ImageLike
from mitoseg.classical.graph_cut import Mask, cut_in_parts, pair_weights, unary_costs
from mitoseg.classical.voxelwise import (
    ROWS,
    Floats,
    Pair,
    Samples,
    Trial,
    VoxelClassifier,
    best_threshold,
    check_share,
    check_whole,
    jaccard,
)
from mitoseg.errors import UserError
from mitoseg.extras import import_extra

SMOOTHNESS = (0.5, 1.0, 2.0, 4.0, 8.0)
_STEP = 0.5  # of the threshold's log-odds while it is tuned


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
    rate: float = 0.1  # share of each tree that counts
    smoothness: float = 1.0  # weight of two neighbours that differ, in units of log-odds; `tune` sets it
    cut_threshold: float = 0.5  # that the regularisation starts from; `tune` sets it

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("trees", self.trees, 1)
        check_whole("leaves", self.leaves, 2)
        check_share("rate", self.rate)
        check_share("cut_threshold", self.cut_threshold)
        if not self.smoothness >= 0:
            raise UserError("smoothness is negative or no number", self.smoothness, "give 0 or more")

    def _grow(self, samples: Samples) -> Any:  # noqa: ANN401
        ensemble = import_extra("sklearn.ensemble", "scikit-learn", "classical")
        boosting = ensemble.HistGradientBoostingClassifier(
            max_iter=self.trees,
            max_leaf_nodes=self.leaves,
            learning_rate=self.rate,
            early_stopping=False,
            random_state=self.seed,
        )
        return boosting.fit(samples.features_nf, samples.label_n)

    def _evaluate(self, model: Any, features_fn: FloatArray, shift: float) -> Floats:  # noqa: ANN401
        parts = (features_fn[:, begin : begin + ROWS].T for begin in range(0, features_fn.shape[1], ROWS))
        log_odds = np.concatenate([model.decision_function(x_nf) for x_nf in parts])
        prob_n: Floats = expit(log_odds - shift)
        return prob_n

    def predict(
        self, image_zyx: ImageLike, threshold: float | None = None, *, regularize: bool = True
    ) -> npt.NDArray[np.uint8]:
        """The mask, uint8 of 0 and 1; see `segment`."""
        return self.segment(self.predict_proba(image_zyx), threshold, regularize=regularize)

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
        that ends when a smoothness is worse than the one before.
        What is returned is all that was tried, the voxels alone first.
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
        for step in (-_STEP, _STEP):
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
