"""EPFL CA1 hippocampus, the benchmark of Lucchi et al., with its original annotation."""

from __future__ import annotations

from typing import ClassVar

from mitoseg.datasets.download import RemoteFile
from mitoseg.datasets.published import Facts, Published, Volumes
from mitoseg.datasets.splitting import Validation

_URL = "https://documents.epfl.ch/groups/c/cv/cvlab-unit/www/data/%20ElectronMicroscopy_Hippocampus/"
_BYTES = 129_919_357
"""Of each of the four files; no checksum is published."""

VALIDATION = Validation(slabs=((0, 14), (151, 165)), gap=8)
"""Both ends of the training volume: by thirds along z it is 8.2, 4.3 and 4.4 % mitochondria, so one slab is not it."""


class Lucchi(Published):
    """FIB-SEM of the CA1 hippocampus: 165 slices of 768 x 1024 for training and as many for testing, at 5 nm."""

    name = "lucchi"
    default_validation = VALIDATION
    facts: ClassVar[Facts] = Facts(
        title="EPFL CA1 hippocampus (Lucchi et al.)",
        homepage="https://www.epfl.ch/labs/cvlab/data/data-em/",
        licence="none found; the publishers ask to cite their papers",
        citation=(
            "A. Lucchi, Y. Li and P. Fua, Learning for Structured Prediction Using Approximate Subgradient Descent "
            "with Working Sets, CVPR 2013; A. Lucchi et al., Supervoxel-Based Segmentation of Mitochondria in EM "
            "Image Stacks with Learned Shape Features, IEEE TMI 31(2), 2012"
        ),
        doi="10.1109/TMI.2011.2171705",
        files=tuple(
            RemoteFile(name, _URL + name, size=_BYTES)
            for name in ("training.tif", "training_groundtruth.tif", "testing.tif", "testing_groundtruth.tif")
        ),
        voxel_size=(5.0, 5.0, 5.0),
        split="the publishers' training and testing volumes; validation: both ends of training, behind a gap",
        train=Volumes("training.tif", "training_groundtruth.tif", (165, 768, 1024)),
        test=Volumes("testing.tif", "testing_groundtruth.tif", (165, 768, 1024)),
    )
