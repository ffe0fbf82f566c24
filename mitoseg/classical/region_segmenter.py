"""What both supervoxel methods share: estimators that describe an image, cut its graph, and answer for every voxel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from mitoseg.classical.describing import Description, RegionDescriber
from mitoseg.classical.potts import cut_ladder
from mitoseg.classical.region_statistics import label_counts
from mitoseg.classical.saved import load_arrays, save_arrays
from mitoseg.classical.streaming import as_volume
from mitoseg.errors import UserError
from mitoseg.volumes import Array, Volume
from mitoseg.volumes.labels import IGNORED

FloatArray = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

LEVELS = np.linspace(-6.0, 4.0, 21)
"""Log-odds at which the graph is cut; a threshold is one of them."""
WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pairwise weights that `tune` tries."""


@dataclass
class RegionSegmenter(ABC):
    """A segmentation of supervoxels; see `mitoseg.classical.supervoxels` and `mitoseg.classical.structured`.

    Attributes:
        voxel_size: (z, y, x) in nm.
        region_size: Edge in nm of a cube as large as a supervoxel is on average.
        landmarks: Of the kernel map.
        regularize: Whether neighbours count; without them this is the unary-only ablation.
        seed: Of all chance.
        describer: Makes and describes supervoxels; one that is fitted is used as it is, so that two methods can share
            it. By default a new one.
        pairwise_weight_: Of the pairs against the unary terms, as tuned.
        threshold_: Probability at and above which a voxel is foreground, as tuned.
        unary_threshold_: The same without neighbours.
    """

    voxel_size: tuple[float, float, float] = (5.0, 5.0, 5.0)
    region_size: float = 35.0
    landmarks: int = 400
    regularize: bool = True
    seed: int = 0
    describer: RegionDescriber | None = field(default=None, repr=False)
    pairwise_weight_: float = 1.0
    threshold_: float = 0.5
    unary_threshold_: float = 0.5

    def __post_init__(self) -> None:
        self.voxel_size = tuple(float(v) for v in self.voxel_size)  # type: ignore[assignment]
        if self.describer is None:
            self.describer = RegionDescriber(self.voxel_size, self.region_size, seed=self.seed)
        if self.landmarks < 2:
            raise UserError("too few landmarks", self.landmarks, "give 2 or more")

    @property
    def threshold(self) -> float:
        """The one that belongs to ``regularize``."""
        return self.threshold_ if self.regularize else self.unary_threshold_

    def fit(self, image_zyx: Array | Volume, label_zyx: Array | Volume) -> Self:
        """Learn everything, and tune on supervoxels that were held out.

        Args:
            image_zyx: (Z, Y, X) grey values.
            label_zyx: 0 background, 1 mitochondrion, 255 ignored.

        Raises:
            UserError: The shapes differ, a class is missing, or a library is.
        """
        assert self.describer is not None
        if self.describer.maps_ is None:
            self.describer.fit(image_zyx, label_zyx)
        return self.fit_description(self.describer.describe(image_zyx), label_zyx)

    def fit_description(self, description: Description, label_zyx: Array | Volume) -> Self:
        """The same of an image that is described already; see `fit`."""
        fg, known = region_labels(description, label_zyx)
        if not 0 < (2 * fg > known).sum() < (known > 0).sum():
            raise UserError("the labels lack mitochondria or background", None, "give more of the volume")
        held_out, pair_cost = self._learn(description, fg, known)
        self._tune(description, held_out, pair_cost, fg, known)
        return self

    def tune(self, image_zyx: Array | Volume, label_zyx: Array | Volume) -> Self:
        """Choose threshold and pairwise weight by the foreground Jaccard index.

        Rays and neighbours look beyond a slab: give the image with some tissue around it, labelled 255.
        """
        return self.tune_description(self.describe(image_zyx), label_zyx)

    def tune_description(self, description: Description, label_zyx: Array | Volume) -> Self:
        """The same of an image that is described already."""
        self._tune(description, *self._potentials(description), *region_labels(description, label_zyx))
        return self

    def describe(self, image_zyx: Array | Volume) -> Description:
        """Supervoxels of an image."""
        assert self.describer is not None
        return self.describer.describe(image_zyx)

    def predict_proba(self, image_zyx: Array | Volume) -> FloatArray:
        """Probability of mitochondrion, (Z, Y, X) float32: the same all over a supervoxel.

        With ``regularize`` it is the probability at which the graph cut changes its mind, so that at every threshold
        of `LEVELS` the mask is exactly the cut there.
        """
        description = self.describe(image_zyx)
        probability: FloatArray = self.region_probabilities(description)[description.region_zyx]
        return probability

    def predict(self, image_zyx: Array | Volume) -> npt.NDArray[np.uint8]:
        """The mask, (Z, Y, X) uint8 of 0 and 1."""
        return (self.predict_proba(image_zyx) >= np.float32(self.threshold)).astype(np.uint8)

    def region_probabilities(self, description: Description) -> FloatArray:
        """Probability (N,) of each supervoxel."""
        log_odds, pair_cost = self._potentials(description)
        if self.regularize:
            log_odds = _cut(description, log_odds, self.pairwise_weight_ * pair_cost)
        probability: FloatArray = expit(log_odds.astype(np.float64)).astype(np.float32)
        return probability

    @abstractmethod
    def _learn(self, description: Description, fg: Counts, known: Counts) -> tuple[FloatArray, FloatArray]:
        """Learn from supervoxels; log-odds (N,) of machines that had not seen them, and pair costs (E,)."""

    @abstractmethod
    def _potentials(self, description: Description) -> tuple[FloatArray, FloatArray]:
        """Log-odds (N,) and pair costs (E,), none below zero."""

    @abstractmethod
    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What `_learn` learned."""

    @abstractmethod
    def _restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Put back what `_arrays` gave."""

    def _tune(
        self, description: Description, log_odds: FloatArray, pair_cost: FloatArray, fg: Counts, known: Counts
    ) -> None:
        level, _ = best_level(log_odds, fg, known)
        self.unary_threshold_, best = _threshold(level), -1.0
        for weight in WEIGHTS if self.regularize else ():
            level, score = best_level(_cut(description, log_odds, weight * pair_cost), fg, known)
            if score > best:
                self.pairwise_weight_, self.threshold_, best = weight, _threshold(level), score

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write it to an .npz file of plain arrays, atomically.

        Raises:
            UserError: Nothing was fitted, or the file exists and may not be replaced.
        """
        assert self.describer is not None
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name in _SAVED}
        facts = {"own": own, "describer": self.describer.settings()}
        arrays = {**self._arrays(), **{f"describer.{k}": v for k, v in self.describer.arrays().items()}}
        save_arrays(path, type(self).__name__, facts, arrays, overwrite=overwrite)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The estimator that was saved there.

        Raises:
            UserError: The file is missing, damaged, or of another method.
        """
        facts, arrays = load_arrays(path, cls.__name__)
        start = "describer."
        describer = RegionDescriber.restored(
            facts["describer"], {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
        )
        segmenter = cls(**facts["own"], describer=describer)
        segmenter._restore({k: v for k, v in arrays.items() if not k.startswith(start)})
        return segmenter


_SAVED = {f.name for f in fields(RegionSegmenter)} - {"describer"}


def region_labels(description: Description, label_zyx: Array | Volume) -> tuple[Counts, Counts]:
    """Foreground and labelled voxels of each supervoxel.

    Raises:
        UserError: The labels have another shape.
    """
    label, count = as_volume(label_zyx), len(description.size)
    if label.shape != description.region_zyx.shape:
        remedy = f"give labels of shape {description.region_zyx.shape}"
        raise UserError("image and labels differ in shape", label.shape, remedy)
    return label_counts(description.region_zyx.ravel(), label.read().ravel(), count, IGNORED)


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
