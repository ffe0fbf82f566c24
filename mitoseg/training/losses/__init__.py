"""Losses of voxels: two scores each in, a scalar out; ignored voxels and reduced precision are seen to."""

from mitoseg.training.losses.boundary import BoundaryCrossEntropy, squared_border_distance
from mitoseg.training.losses.combined import DeepSupervision, Sum
from mitoseg.training.losses.cross_entropy import CrossEntropy
from mitoseg.training.losses.overlap import Lovasz, MonaiLoss, lovasz_hinge
from mitoseg.training.losses.voxels import IGNORED, VoxelLoss, log_odds

__all__ = [
    "IGNORED",
    "BoundaryCrossEntropy",
    "CrossEntropy",
    "DeepSupervision",
    "Lovasz",
    "MonaiLoss",
    "Sum",
    "VoxelLoss",
    "log_odds",
    "lovasz_hinge",
    "squared_border_distance",
]
