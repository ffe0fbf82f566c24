"""Lucchi++: the EPFL CA1 hippocampus, re-annotated by Casser et al."""

from __future__ import annotations

from typing import ClassVar

from mitoseg.datasets.download import RemoteFile
from mitoseg.datasets.lucchi import VALIDATION
from mitoseg.datasets.published import Facts, Published, Volumes


class LucchiPP(Published):
    """The volumes of `Lucchi` with consistent boundaries and no missed mitochondria; folders of PNG slices.

    The images are called ``mask%04i.png`` (``Train_In``, ``Test_In``) and the labels ``%i.png`` (``Train_Out``,
    ``Test_Out``); some are RGBA.
    """

    name = "lucchi_pp"
    default_validation = VALIDATION
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
        split="the publishers' training and testing volumes; validation: both ends of training, behind a gap",
        train=Volumes("Train_In", "Train_Out", (165, 768, 1024)),
        test=Volumes("Test_In", "Test_Out", (165, 768, 1024)),
    )
