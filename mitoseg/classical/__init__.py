"""The non-deep methods of the abstract's table: features of voxels, classifiers, graph cuts."""

from mitoseg.classical.features import VoxelFeatures

__all__ = ["VoxelFeatures"]
