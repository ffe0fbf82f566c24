"""Drosophila larva ventral nerve cord, serial-section TEM (Gerhard et al.)."""

from __future__ import annotations

from typing import ClassVar

from mitoseg.datasets.download import RemoteFile
from mitoseg.datasets.published import Facts, Published, Volumes


class Vnc(Published):
    """20 annotated sections of 1024 x 1024; neighbours look little alike. No labelled test volume: use ``folds``."""

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
