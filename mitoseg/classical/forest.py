"""A random forest that classifies voxels: the row that people know from ilastik."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mitoseg.classical.features import ImageLike
from mitoseg.classical.trees import TreeEnsemble
from mitoseg.classical.voxelwise import Samples, Trial, VoxelClassifier, check_whole
from mitoseg.extras import import_extra


@dataclass
class ForestClassifier(VoxelClassifier):
    """Pixel classification the ilastik way (Berg et al., Nature Methods 16, 2019; Breiman, Machine Learning 45, 2001).

    Filters of the image at several scales, a random forest of 100 trees, the mean vote as the probability. Where ours
    differs: ilastik learns from a few strokes of a brush, ours from a sample of a labelled volume, half of each class,
    whose balance is taken out of the probabilities again; its scales are pixels, ours nm, up to context of 80 nm; its
    trees grow to the end, ours stop at leaves of ``leaf`` voxels, which is no worse and ten times smaller. Each voxel
    is decided alone: there is no regularisation, so this is its own unary-only ablation.

    Attributes:
        trees: Number of trees.
        leaf: Least number of voxels of a leaf.

    Raises:
        UserError: A parameter is out of range.
    """

    trees: int = 100
    leaf: int = 5

    gives_logits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("trees", self.trees, 1)
        check_whole("leaf", self.leaf, 1)

    def tune(self, image_zyx: ImageLike, label_zyx: ImageLike) -> Trial:
        """`calibrate`: the threshold is all that there is to choose."""
        return self.calibrate(image_zyx, label_zyx)

    def _grow(self, samples: Samples) -> TreeEnsemble:
        ensemble = import_extra("sklearn.ensemble", "scikit-learn", "classical")
        forest = ensemble.RandomForestClassifier(
            self.trees,
            min_samples_leaf=self.leaf,
            max_features="sqrt",
            n_jobs=self._threads,
            random_state=self.seed,
        )
        return TreeEnsemble.from_forest(forest.fit(samples.features_nf, samples.label_n).estimators_)
