"""The non-deep methods of the abstract's table: features of voxels, classifiers, graph cuts."""

from mitoseg.classical.features import VoxelFeatures
from mitoseg.classical.forest import ForestClassifier
from mitoseg.classical.neila import NeilaSegmenter

__all__ = ["ForestClassifier", "NeilaSegmenter", "VoxelFeatures"]
