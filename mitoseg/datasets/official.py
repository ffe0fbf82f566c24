"""The published data sets: EPFL CA1 hippocampus with two annotations, and Drosophila larva ventral nerve cord."""

from __future__ import annotations

from typing import ClassVar

from mitoseg.datasets.download import RemoteFile
from mitoseg.datasets.published import Facts, Published, Volumes
from mitoseg.datasets.splitting import Validation

_URL = "https://documents.epfl.ch/groups/c/cv/cvlab-unit/www/data/%20ElectronMicroscopy_Hippocampus/"
_BYTES = 129_919_357  # of each of the four files; no checksum is published
_SHAPE = (165, 768, 1024)
_SPLIT = "the publishers' training and testing volumes; validation: both ends of training, behind a gap"
_VALIDATION = Validation(slabs=((0, 14), (151, 165)), gap=8)
"""Both ends of the training volume: by thirds along z it is 8.2, 4.3 and 4.4 % mitochondria, so one slab is not it."""


class Lucchi(Published):
    """FIB-SEM of the CA1 hippocampus: 165 slices of 768 x 1024 for training and as many for testing, at 5 nm."""

    name = "lucchi"
    default_validation = _VALIDATION
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
        split=_SPLIT,
        train=Volumes("training.tif", "training_groundtruth.tif", _SHAPE),
        test=Volumes("testing.tif", "testing_groundtruth.tif", _SHAPE),
    )


class LucchiPP(Published):
    """Lucchi++: the volumes of `Lucchi`, re-annotated with consistent boundaries and no missed mitochondria.

    Folders of PNG slices, some of them RGBA: images ``mask%04i.png`` (``Train_In``, ``Test_In``) and labels
    ``%i.png`` (``Train_Out``, ``Test_Out``).
    """

    name = "lucchi_pp"
    default_validation = _VALIDATION
    facts: ClassVar[Facts] = Facts(
        title="Lucchi++ (Casser et al.)",
        homepage="https://sites.google.com/view/connectomics/",
        licence="none found; the publishers ask to cite their paper",
        citation=(
            "V. Casser, K. Kang, H. Pfister and D. Haehn, Fast Mitochondria Detection for Connectomics, MIDL 2020, "
            "arXiv:1812.06024; and the papers of the EPFL CA1 hippocampus"
        ),
        doi="10.1109/TMI.2011.2171705",
        files=(
            RemoteFile(
                "lucchi_pp.zip",
                "http://www.casser.io/files/lucchi_pp.zip",
                sha256="770ce9e98fc6f29c1b1a250c637e6c5125f2b5f1260e5a7687b55a79e2e8844d",
            ),
        ),
        voxel_size=(5.0, 5.0, 5.0),
        split=_SPLIT,
        train=Volumes("Train_In", "Train_Out", _SHAPE),
        test=Volumes("Test_In", "Test_Out", _SHAPE),
    )


class Vnc(Published):
    """Drosophila larva ventral nerve cord, serial-section TEM (Gerhard et al.).

    20 annotated sections of 1024 x 1024; neighbours look little alike. No labelled test volume: use ``folds``.
    """

    name = "vnc"
    facts: ClassVar[Facts] = Facts(
        title="Segmented anisotropic ssTEM dataset of neural tissue (Drosophila VNC, stack 1)",
        homepage="https://github.com/unidesigner/groundtruth-drosophila-vnc",
        licence="CC BY-NC-SA 3.0, http://creativecommons.org/licenses/by-nc-sa/3.0/",
        citation=(
            "S. Gerhard, J. Funke, J. Martel, A. Cardona and R. Fetter, Segmented anisotropic ssTEM dataset of neural "
            "tissue, figshare 2013, doi:10.6084/m9.figshare.856713"
        ),
        doi="10.6084/m9.figshare.856713",
        files=(
            RemoteFile(
                "vnc.zip",
                "https://github.com/unidesigner/groundtruth-drosophila-vnc/archive/refs/heads/master.zip",
                sha256="f7bd0db03c86b64440a16b60360ad60c0a4411f89e2c021c7ee2c8d6af3d7e86",
            ),
        ),
        voxel_size=(50.0, 4.6, 4.6),  # sections of 45 to 50 nm
        split="stack 1; validation: its last sections, behind a gap; a test slab with folds (stack 2 has no labels)",
        train=Volumes("stack1/raw", "stack1/mitochondria", (20, 1024, 1024)),
    )
