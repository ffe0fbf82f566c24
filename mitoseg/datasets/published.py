"""The published data sets: EPFL CA1 hippocampus with two annotations, and Drosophila larva ventral nerve cord."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pooch

from mitoseg.datasets.base import Region, Validation
from mitoseg.datasets.download import RemoteFile, fetch, fingerprint, unpack
from mitoseg.datasets.files import Files, Named, find
from mitoseg.errors import UserError
from mitoseg.volumes.base import VoxelSize

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Volumes:
    """Official names of an image and its labels, and their shape (z, y, x)."""

    image: str
    label: str
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Facts:
    """What is known of a published data set; zip archives among ``files`` are unpacked beside themselves.

    ``split`` is the split in words; ``test`` is None where the labels of the test volume are not published.
    """

    title: str
    homepage: str
    licence: str
    citation: str
    files: tuple[RemoteFile, ...]
    voxel_size: VoxelSize
    split: str
    train: Volumes
    test: Volumes | None = None
    doi: str = ""


class Published(Files):
    """A recipe of published volumes: downloaded into a cache, or taken from a folder where they are already.

    ``root`` is the folder that holds the files, which is never written into; None is the cache, which is filled by
    downloading. ``download=True`` downloads what is missing also into ``root``, False never, None only into the cache.
    Other options are those of `Files`; names in ``train`` and ``test`` replace the official ones.
    """

    facts: ClassVar[Facts]

    def __init__(
        self,
        *,
        root: str | None = None,
        download: bool | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        if options.get("voxel_size") is None:
            options["voxel_size"] = self.facts.voxel_size
        super().__init__(root=root, **options)
        self.download = root is None if download is None else download
        self.folder = self.root or Path(pooch.os_cache("mitoseg")) / self.name

    def prepare(self) -> None:
        """Download and unpack what is missing, where that is wanted."""
        missing = self._missing()
        if not self.download or not missing:
            return
        facts = self.facts
        _log.info("%s. Licence: %s. Please cite: %s", facts.title, facts.licence, facts.citation)
        for file in facts.files:
            if file.name in missing:
                fetch(file, self.folder)
            elif file.name.endswith(".zip"):
                unpacked = self.folder / Path(file.name).stem
                if not unpacked.exists():
                    unpack(fetch(file, self.folder), unpacked)

    def paths(self, key: str) -> Named:
        """The volumes of a split: those that are named, else the official ones; see `Files.paths`."""
        missing = ", ".join(self._missing())
        if missing:
            remedy = "download them with data.download=true, name the folder that holds them with data.root=, or name "
            remedy += "others with data.train.image= data.train.label= data.test.image= data.test.label="
            raise UserError(f"the folder of {self.name} lacks {missing}", str(self.folder), remedy)
        return super().paths(key)

    def named(self, key: str) -> Named:
        """The volumes that are named, completed by the official ones."""
        named, official = super().named(key), self._official.get(key)
        if official is None:
            return named
        image, label = (self._find(name) or name for name in (official.image, official.label))
        return replace(named, image=named.image or (image,), label=named.label or (label,))

    def warnings(self, paths: Mapping[str, Named], regions: Mapping[str, list[Region]]) -> list[str]:
        """How the files differ from the official ones, and what is odd about them."""
        differences = []
        for key, official in self._official.items():
            for name, used in ((official.image, paths[key].image), (official.label, paths[key].label)):
                differences += [d for path in used if (d := self._difference(name, path))]
            shapes = [region.image.shape for region in regions[key]]
            if shapes != [official.shape]:
                differences.append(f"the {key} shape is {', '.join(map(str, shapes))} instead of {official.shape}")
        if differences:
            differences = [f"these are not the official files ({'; '.join(differences)}): scores may differ"]
        return differences + super().warnings(paths, regions)

    def facts_for_provenance(self) -> dict[str, object]:
        """Title, homepage, licence, citation, split and the official files."""
        facts = self.facts
        known = {key: getattr(facts, key) for key in ("title", "homepage", "licence", "citation", "split")}
        return {"name": self.name, **known, "official_files": [asdict(file) for file in facts.files]}

    @property
    def _official(self) -> dict[str, Volumes]:
        return {"train": self.facts.train} | ({"test": self.facts.test} if self.facts.test else {})

    def _remote(self, name: str) -> RemoteFile | None:
        """The published file of this name, None for what lies inside an archive."""
        return next((file for file in self.facts.files if file.name == name), None)

    def _find(self, name: str) -> str | None:
        """Path of an official file; what an archive holds may lie deeper, depending on how it was unpacked."""
        return find(self.folder, name, deep=self._remote(name) is None)

    def _missing(self) -> list[str]:
        """Official files that are needed, because no other is named, and are not there."""
        missing = []
        for key, official in self._official.items():
            named = super().named(key)
            wanted = ((named.image, official.image), (named.label, official.label))
            missing += [name for given, name in wanted if not given and self._find(name) is None]
        return missing

    def _difference(self, name: str, path: str) -> str | None:
        """How the file that is used differs from the official one of this name, in words."""
        remote, used = self._remote(name), Path(path).name
        if remote is None:  # it comes out of an archive, so only its name can be compared
            return None if used.lower() == name.split("/")[-1].lower() else f"{used} stands for {name}"
        measured = fingerprint(path)
        difference = remote.difference(measured["bytes"], measured["sha256"])
        return f"{used} has {difference}" if difference else None


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
    facts: ClassVar[Facts] = replace(
        Lucchi.facts,
        title="Lucchi++ (Casser et al.)",
        homepage="https://sites.google.com/view/connectomics/",
        licence="none found; the publishers ask to cite their paper",
        citation=(
            "V. Casser, K. Kang, H. Pfister and D. Haehn, Fast Mitochondria Detection for Connectomics, MIDL 2020, "
            "arXiv:1812.06024; and the papers of the EPFL CA1 hippocampus"
        ),
        files=(
            RemoteFile(
                "lucchi_pp.zip",
                "http://www.casser.io/files/lucchi_pp.zip",
                sha256="770ce9e98fc6f29c1b1a250c637e6c5125f2b5f1260e5a7687b55a79e2e8844d",
            ),
        ),
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
