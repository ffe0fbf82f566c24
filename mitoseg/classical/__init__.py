"""The non-deep methods of the abstract's table: features, classifiers and graph cuts of voxels and supervoxels."""

from mitoseg.classical.features import VoxelFeatures
from mitoseg.classical.structured import StructuredSegmenter
from mitoseg.classical.supervoxels import SupervoxelSegmenter
from mitoseg.classical.voxelwise import ForestClassifier, NeilaSegmenter

__all__ = ["ForestClassifier", "NeilaSegmenter", "StructuredSegmenter", "SupervoxelSegmenter", "VoxelFeatures"]
