"""Your own annotated volumes: one or several, whole or in part, with a validation slab or in folds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar, TypedDict

from mitoseg.datasets.base import Region, Splits
from mitoseg.datasets.checksums import fingerprint
from mitoseg.datasets.naming import Named, resolve
from mitoseg.datasets.pairs import Pair, Reader, check_apart, check_once
from mitoseg.datasets.splitting import Validation, fold_slabs
from mitoseg.errors import UserError

_log = logging.getLogger(__name__)


class Options(TypedDict, total=False):
    """Constructor keywords that every recipe of volumes shares; see `Files`."""

    train: Mapping[str, object] | None
    test: Mapping[str, object] | None
    validation: Mapping[str, object] | None
    folds: int | None
    fold: int
    foreground: object
    ignore_label: int | None
    ignore_empty_slices: bool
    label_rule_of_values: str
    axes: str | None
    voxel_size: Sequence[float] | None
    padding: str


class Files:
    """A recipe of volumes that are on disk.

    Args:
        root: Folder in which relative names are looked for first, or None.
        train: ``image``, ``label`` (a path or a list of paths), ``box`` (the annotated part of each volume, such as
            ``[0:20,:,:]``, None for all of it) and ``foreground`` (as below, an entry for each volume).
        test: The same for the test split; may be left out.
        validation: ``slabs`` ([[z0, z1], ...] or None), ``share`` (of the slices, from the end) and ``gap`` (slices
            left out between splits); applied to each training volume.
        folds: Cut each training volume into so many z-slabs; ``fold`` is the test slab and the next one validates.
            Where a test volume is named, ``fold`` is the validation slab.
        fold: Which fold, from 0.
        foreground: The label values that are mitochondria, one or a list; None: by ``label_rule_of_values``.
        ignore_label: Label value of voxels that enter neither loss, balance nor score.
        ignore_empty_slices: Whether the voxels of a slice without a single label do neither: nobody annotated it.
        label_rule_of_values: Which label values are mitochondria: auto, nonzero or half.
        axes: Letters of the stored axes where the files do not say.
        voxel_size: (z, y, x) in nm; None takes what the files say.
        padding: ``auto``: margins of one value (see `mitoseg.volumes.padding`) enter no statistic of the grey values,
            and neither loss, balance nor score; ``none``: they are tissue.

    Raises:
        UserError: An option is of the wrong kind.
    """

    name: ClassVar[str] = "files"
    default_validation: ClassVar[Validation] = Validation()

    def __init__(
        self,
        *,
        root: str | None = None,
        train: Mapping[str, object] | None = None,
        test: Mapping[str, object] | None = None,
        validation: Mapping[str, object] | None = None,
        folds: int | None = None,
        fold: int = 0,
        foreground: object = None,
        ignore_label: int | None = None,
        ignore_empty_slices: bool = False,
        label_rule_of_values: str = "auto",
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
        padding: str = "auto",
    ) -> None:
        self.root = None if root is None else Path(root).expanduser()
        self.train, self.test = Named.of(train, "train"), Named.of(test, "test")
        self.validation = Validation.of(validation, self.default_validation)
        self.folds, self.fold = folds, fold
        self.label_rule_of_values, self.ignore_label, self.axes = label_rule_of_values, ignore_label, axes
        self.foreground = foreground
        if ignore_empty_slices not in (True, False):
            remedy = "give data.ignore_empty_slices=true or data.ignore_empty_slices=false"
            raise UserError("data.ignore_empty_slices is neither true nor false", ignore_empty_slices, remedy)
        self.ignore_empty_slices = ignore_empty_slices
        self.padding = padding
        self.voxel_size = None if voxel_size is None else tuple(float(v) for v in voxel_size)
        self._splits: Splits | None = None

    def prepare(self) -> None:
        """Nothing to do: the files are there or they are not."""

    def splits(self) -> Splits:
        """Open the volumes, check them, and cut them into splits; the second call gives the same object.

        Raises:
            UserError: Files are missing or unreadable, image and labels differ in shape, labels hold no foreground,
                there are too few slices, or splits overlap.
        """
        if self._splits is None:
            self._splits = self._open()
        return self._splits

    def named(self, key: str) -> Named:
        """What the user names for a split."""
        return self.train if key == "train" else self.test

    def paths(self, key: str) -> Named:
        """The volumes of a split (``train`` or ``test``) as paths that exist; empty where none are named.

        Raises:
            UserError: A file is missing, or only one of image and label is named.
        """
        named = self.named(key)
        if key == "train" and not named.image:
            remedy = "give data.train.image=VOLUME data.train.label=VOLUME"
            raise UserError("no training volumes are named", None, remedy)
        if len(named.image) != len(named.label):
            what = f"data.{key} names {len(named.image)} images but {len(named.label)} labels"
            raise UserError(what, None, f"give data.{key}.image= and data.{key}.label=, as many of each")
        return replace(named, image=self._resolved(named.image), label=self._resolved(named.label))

    def warnings(self, paths: Mapping[str, Named], pairs: Mapping[str, list[Pair]]) -> list[str]:
        """What is odd about the files, a sentence each."""
        sizes = {p.image.voxel_size for p in (*pairs["train"], *pairs["test"]) if p.image.voxel_size}
        if len(sizes) > 1:
            return [f"the volumes differ in voxel size ({', '.join(map(str, sorted(sizes)))} nm)"]
        return []

    def facts_for_provenance(self) -> dict[str, object]:
        """What is known of the data set, as plain data."""
        return {"name": self.name}

    def _resolved(self, names: Sequence[str]) -> tuple[str, ...]:
        found = [resolve(name, self.root) for name in names]
        for name, path in zip(names, found, strict=True):
            if path is None:
                where = f"{self.root} and the working directory" if self.root else "the working directory"
                raise UserError("no such volume", name, f"relative names are looked for in {where}: check data.root=")
        return tuple(path for path in found if path is not None)

    def _open(self) -> Splits:
        reader = Reader(
            label_rule_of_values=self.label_rule_of_values,
            foreground=self.foreground,
            ignore_label=self.ignore_label,
            ignore_empty_slices=self.ignore_empty_slices,
            axes=self.axes,
            voxel_size=self.voxel_size,
            padding=self.padding,
        )
        paths = {key: self.paths(key) for key in ("train", "test")}
        pairs = {key: reader.pairs(paths[key], key) for key in paths}
        regions = self._cut(pairs["train"], pairs["test"])
        warnings = self.warnings(paths, pairs)
        for key in regions:
            check_once(regions[key])
        for key in ("validation", "test"):
            warnings += check_apart(regions["train"], regions[key], self.validation.gap)
        if warnings:
            _log.warning("%s: %s", self.name, "; ".join(warnings))
        sizes = [p.image.voxel_size for p in pairs["train"] if p.image.voxel_size]
        voxel_size = sizes[0] if sizes else None
        provenance = {
            **self.facts_for_provenance(),
            "files": _files(paths),
            "label_rules": dict(reader.rules),
            "regions": {key: [region.name for region in regions[key]] for key in regions},
            "voxel_size": None if voxel_size is None else list(voxel_size),
            "warnings": warnings,
        }
        train, validation, test = (tuple(regions[key]) for key in ("train", "validation", "test"))
        return Splits(train, validation, test, voxel_size, provenance)

    def _cut(self, train: Sequence[Pair], test: Sequence[Pair]) -> dict[str, list[Region]]:
        regions: dict[str, list[Region]] = {"train": [], "validation": [], "test": []}
        for pair in train:
            z0, z1 = pair.box.start[0], pair.box.stop[0]
            if self.folds is None:
                kept, held = self.validation.ranges(z0, z1)
                tested = []
            else:
                cut = fold_slabs(z1 - z0, self.folds, self.fold, self.validation.gap, with_test=not test)
                kept, held, tested = ([(a + z0, b + z0) for a, b in r] for r in (cut.train, cut.validation, cut.test))
            for key, ranges in zip(regions, (kept, held, tested), strict=True):
                regions[key] += pair.regions(ranges)
        for pair in test:
            regions["test"] += pair.regions([(pair.box.start[0], pair.box.stop[0])])
        return regions


def _files(paths: Mapping[str, Named]) -> list[dict[str, object]]:
    """Size and sha256 of every file that is used."""
    roles = ((f"{key}.{kind}", getattr(paths[key], kind)) for key in paths for kind in ("image", "label"))
    return [{"role": role, **asdict(fingerprint(path))} for role, names in roles for path in names]
