"""Classifiers of single voxels: what they share, whatever grows their trees.

fit            features of a balanced sample -> trees
calibrate      labelled validation slices -> the threshold
predict_proba  features, slab by slab -> trees -> log-odds less what the balance added -> probability
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from mitoseg.classical.deciding import Pair, Trial, best_threshold
from mitoseg.classical.eigenvalues import FloatArray
from mitoseg.classical.features import VoxelFeatures
from mitoseg.classical.sampling import Samples, draw_samples, labelled_runs
from mitoseg.classical.saved import load_arrays, save_arrays
from mitoseg.classical.streaming import ImageLike, as_volume, slab_depth, slab_features
from mitoseg.classical.trees import TreeEnsemble
from mitoseg.control_groups import usable_cores
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import Volume, check_same_shape

_OF_THE_MACHINE = ("depth", "threads")


@dataclass(frozen=True)
class Fitted:
    """What training found: the trees, and what their log-odds are too high by (`Samples.shift`)."""

    trees: TreeEnsemble
    shift: float


@dataclass
class VoxelClassifier(ABC):
    """A classifier of voxels by their features, in the manner of scikit-learn's estimators.

    Attributes:
        voxel_size: (z, y, x) in nm, of all volumes that it is given.
        sigmas: Scales of the features, in nm.
        tensor: Whether the structure tensor is among the features.
        samples: Voxels to learn from, half of each class.
        seed: Of the sample and of the trees.
        threshold: Probability at and above which a voxel is foreground; `calibrate` sets it.
        depth: Slices of a slab, None: as memory allows. No result depends on it.
        threads: None: as many as ``OMP_NUM_THREADS`` says, or as there are usable cores. No result depends on it.
        fitted: What `fit` found.
    """

    voxel_size: tuple[float, float, float] = (5.0, 5.0, 5.0)
    sigmas: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0, 80.0)
    tensor: bool = False
    samples: int = 400_000
    seed: int = 0
    threshold: float = 0.5
    depth: int | None = None
    threads: int | None = None
    fitted: Fitted | None = field(default=None, init=False, repr=False)

    gives_logits: ClassVar[bool]
    """Whether the trees sum up to log-odds, or to probabilities."""

    def __post_init__(self) -> None:
        self._features = VoxelFeatures(self.sigmas, self.voxel_size, self.tensor)
        self.sigmas, self.voxel_size = self._features.sigmas, self._features.voxel_size
        check_whole("samples", self.samples, 2)
        check_whole("seed", self.seed, 0)
        for name in _OF_THE_MACHINE:
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        check_share("threshold", self.threshold)

    @property
    def features(self) -> VoxelFeatures:
        """What a voxel is judged by."""
        return self._features

    @abstractmethod
    def _grow(self, samples: Samples) -> TreeEnsemble:
        """Learn from a balanced sample."""

    def fit(self, image_zyx: ImageLike, label_zyx: ImageLike) -> Self:
        """Learn.

        Args:
            image_zyx: An array or a volume.
            label_zyx: 0, 1 (mitochondrion) and 255 (ignored), of the same shape; slices without labels cost nothing.

        Returns:
            Itself.

        Raises:
            UserError: As `draw_samples`, or scikit-learn is missing.
        """
        image, label = as_volume(image_zyx), as_volume(label_zyx)
        rng = np.random.default_rng(self.seed)
        depth = self.depth or slab_depth(image, self.features)
        samples = draw_samples(image, label, self.features, self.samples, depth, rng, self._threads)
        self.fitted = Fitted(self._grow(samples), samples.shift)
        return self

    def predict_proba(self, image_zyx: ImageLike) -> FloatArray:
        """Probability of mitochondrion.

        Args:
            image_zyx: An array or a volume, (Z, Y, X).

        Returns:
            ``prob_zyx`` float32 (Z, Y, X).

        Raises:
            UserError: It is not trained, or the image holds values that are no numbers.
        """
        volume = as_volume(image_zyx)
        return self._probability(volume, volume.box)

    def predict(self, image_zyx: ImageLike, threshold: float | None = None) -> npt.NDArray[np.uint8]:
        """The mask, 0 and 1, at a threshold (None: its own); see `predict_proba`."""
        return (self.predict_proba(image_zyx) >= (self.threshold if threshold is None else threshold)).astype(np.uint8)

    def calibrate(self, image_zyx: ImageLike, label_zyx: ImageLike) -> Trial:
        """Set the threshold by the foreground Jaccard index of labelled slices, which no training has seen.

        Args:
            image_zyx: An array or a volume, with the tissue around the slices: it gives their voxels a context.
            label_zyx: 0, 1 and 255; slices that are all 255 are not predicted.

        Returns:
            The threshold and its score.

        Raises:
            UserError: As `predict_proba`, or there are no labels or no mitochondria.
        """
        trial = best_threshold(self._validation(image_zyx, label_zyx))
        self.threshold = trial.threshold
        return trial

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write parameters and trees to an ``.npz``.

        Raises:
            UserError: It is not trained, or as `mitoseg.storage.atomic_output`.
        """
        fitted = self._fitted
        parameters = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in _OF_THE_MACHINE}
        facts = {"parameters": parameters, "shift": fitted.shift}
        save_arrays(path, type(self).__name__, facts, fitted.trees.arrays(), overwrite=overwrite)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: There is no such file, or it is damaged or of another method.
        """
        facts, arrays = load_arrays(path, cls.__name__)
        try:
            parameters: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in facts["parameters"].items()
            }
            loaded = cls(**parameters)
            loaded.fitted = Fitted(TreeEnsemble(**arrays), float(facts["shift"]))
            loaded.fitted.trees.check(len(loaded.features.names))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError("the file holds no trained method", str(path), "save it again") from error
        return loaded

    @property
    def _threads(self) -> int:
        return self.threads or int(os.environ.get("OMP_NUM_THREADS") or 0) or usable_cores()

    @property
    def _fitted(self) -> Fitted:
        if self.fitted is None:
            raise UserError(f"{type(self).__name__} is not trained", None, "call fit or load before")
        return self.fitted

    def _probability(self, volume: Volume, box: Box) -> FloatArray:
        """Probability of the voxels of a box."""
        fitted, depth = self._fitted, self.depth or slab_depth(volume, self.features)
        prob_zyx = np.empty(box.shape, np.float32)
        for slab, found in slab_features(volume, box, self.features, depth, self._threads):
            raw = fitted.trees(found.reshape(len(found), -1), self._threads)
            own = slab.inside(box).slices
            prob_zyx[own] = corrected(raw, fitted.shift, self.gives_logits).reshape(slab.shape)
        return prob_zyx

    def _validation(self, image_zyx: ImageLike, label_zyx: ImageLike) -> Iterator[Pair]:
        """Probability and labels of each run of slices that holds labels."""
        image, label = as_volume(image_zyx), as_volume(label_zyx)
        check_same_shape(image, label)
        for run in labelled_runs(label):
            yield self._probability(image, run), label.read(run).astype(np.uint8)


def corrected(raw: npt.NDArray[np.float64], shift: float, logits: bool) -> npt.NDArray[np.float64]:
    """Probability under the volume's prior, of log-odds or a probability under the sample's.

    >>> corrected(np.array([0.5]), float(np.log(19)), logits=False).round(3).tolist()
    [0.05]
    """
    if logits:
        share: npt.NDArray[np.float64] = expit(raw - shift)
        return share
    return np.asarray(raw / (raw + (1 - raw) * np.exp(shift)))


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        UserError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} is no whole number from {least} up", value, f"give {least} or more")


def check_share(name: str, value: Any) -> None:  # noqa: ANN401 (whatever the user gave)
    """Refuse what does not lie between 0 and 1.

    Raises:
        UserError: It does not.
    """
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"{name} is no probability between 0 and 1", value, "give a number such as 0.5")
