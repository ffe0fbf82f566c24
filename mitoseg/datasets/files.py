"""Your own annotated volumes: one or several, whole or in part, with a validation slab or in folds."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, islice
from pathlib import Path, PurePath
from typing import ClassVar, TypedDict

from mitoseg.datasets.base import IGNORE, Region, Splits
from mitoseg.datasets.download import file_of, fingerprint
from mitoseg.datasets.splitting import Range, Validation, fold_slabs
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import check_same_shape, map_labels, open_volume
from mitoseg.volumes.base import Volume
from mitoseg.volumes.opening import warn_of_gaps, warn_of_sizes
from mitoseg.volumes.padding import blanked, with_padding

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
        self._mapped: dict[str, Volume] = {}
        self._rules: dict[str, str] = {}

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
        found = []
        for name in names:
            path = resolve(name, self.root)
            if path is None:
                where = f"{self.root} and the working directory" if self.root else "the working directory"
                raise UserError("no such volume", name, f"relative names are looked for in {where}: check data.root=")
            found.append(path)
        return tuple(found)

    def _open(self) -> Splits:
        paths = {key: self.paths(key) for key in ("train", "test")}
        pairs = {key: self._pairs(paths[key], key) for key in paths}
        regions = self._cut(pairs["train"], pairs["test"])
        warnings = self.warnings(paths, pairs)
        for a, b in (pair for key in regions for pair in combinations(regions[key], 2)):
            if a.image.path == b.image.path and a.box.clip(b.box).size:
                raise UserError("two parts of a split overlap", [a.name, b.name], "name each voxel once")
        for key in ("validation", "test"):
            warnings += check_apart(regions["train"], regions[key], self.validation.gap)
        if warnings:
            _log.warning("%s: %s", self.name, "; ".join(warnings))
        sizes = [p.image.voxel_size for p in pairs["train"] if p.image.voxel_size]
        voxel_size = sizes[0] if sizes else None
        provenance = {
            **self.facts_for_provenance(),
            "files": [
                {"role": f"{key}.{kind}", **asdict(fingerprint(path))}
                for key in paths
                for kind in ("image", "label")
                for path in getattr(paths[key], kind)
            ],
            "label_rules": dict(self._rules),
            "regions": {key: [region.name for region in regions[key]] for key in regions},
            "voxel_size": None if voxel_size is None else list(voxel_size),
            "warnings": warnings,
        }
        train, validation, test = (tuple(regions[key]) for key in ("train", "validation", "test"))
        return Splits(train, validation, test, voxel_size, provenance)

    def _pairs(self, named: Named, key: str) -> list[Pair]:
        """Open the volumes of one split, whose paths exist, as many images as labels."""
        images = [open_volume(path, axes=self.axes, voxel_size=self.voxel_size) for path in named.image]
        labels = [self._open_label(path) for path in named.label]
        for volume in (*images, *labels):
            warn_of_gaps(volume)
        for image, label in zip(images, labels, strict=True):
            check_same_shape(image, label)
            if self.voxel_size is None:
                warn_of_sizes(image, label)
        boxes = [
            image.box if box is None else Box.parse(box, image.shape)
            for image, box in zip(images, named.boxes(key), strict=True)
        ]
        chosen = [self.foreground if values is None else values for values in named.foreground_labels(key)]
        images = [with_padding(image, self.padding) for image in images]
        mapped = [self._map(label, values) for label, values in zip(labels, chosen, strict=True)]
        return [
            Pair(image, blanked(label, image.padding, IGNORE), box)
            for image, label, box in zip(images, mapped, boxes, strict=True)
        ]

    def _open_label(self, path: str) -> Volume:
        try:
            return open_volume(path, axes=self.axes, voxel_size=self.voxel_size)
        except UserError:
            grey_axes = (self.axes or "").lower().replace("c", "").replace("s", "")
            if len(grey_axes) == len(self.axes or ""):
                raise
            return open_volume(path, axes=grey_axes, voxel_size=self.voxel_size)  # colour images, grey labels

    def _map(self, label: Volume, foreground: object) -> Volume:
        key = f"{label.path} {foreground}"
        if key not in self._mapped:
            mapped = map_labels(
                label,
                rule=self.label_rule_of_values if foreground is None else "auto",
                foreground=foreground,
                ignore_label=self.ignore_label,
                ignore_empty_slices=self.ignore_empty_slices,
            )
            if mapped.ignored_slices:
                _log.warning("%s: slices without a label are left out: %s", label.path, list(mapped.ignored_slices))
            self._mapped[key], self._rules[label.path] = mapped, mapped.rule
        return self._mapped[key]

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


@dataclass(frozen=True)
class Pair:
    """An image, its mapped labels (0, 1, 255 ignored), and the annotated part."""

    image: Volume
    label: Volume
    box: Box

    def regions(self, ranges: Iterable[Range]) -> list[Region]:
        """The annotated part, cut to runs of slices."""
        _, y0, x0 = self.box.start
        _, y1, x1 = self.box.stop
        boxes = [Box((a, y0, x0), (b, y1, x1)) for a, b in ranges]
        return [Region(self.image, self.label, box, f"{PurePath(self.image.path).name} {box}") for box in boxes]


def check_apart(train: Sequence[Region], held: Sequence[Region], gap: int) -> list[str]:
    """Look for training and held-out regions of one file that share voxels or come close.

    Raises:
        UserError: They share voxels: the score would be of what was learnt by heart.
    """
    close = []
    for a, b in ((a, b) for a in train for b in held if a.image.path == b.image.path):
        if a.box.clip(b.box).size:
            raise UserError("training and held-out parts overlap", [a.name, b.name], "name parts that do not")
        if a.box.grow((gap, 0, 0)).clip(b.box).size:
            close.append(f"{a.name} and {b.name} are fewer than {gap} slices apart")
    return close


_SEARCH_DEPTH = 4
"""Levels of folders in which official names are looked for: an unpacked archive has up to so many."""

_SEARCH_ENTRIES = 50_000
"""Files that are examined before giving up: data.root may be somebody's whole disk."""


@dataclass(frozen=True)
class Named:
    """Images, their labels, and the part of each that is annotated (None: all of it); one entry a volume.

    ``foreground`` holds the label values of mitochondria as the user gives them; see `foreground_labels`.
    """

    image: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    box: tuple[object, ...] = ()
    foreground: object = None

    @classmethod
    def of(cls, options: Mapping[str, object] | None, key: str) -> Named:
        """Read ``image``, ``label``, ``box`` and ``foreground`` of ``data.<key>``: a value, a list or None each.

        Raises:
            UserError: Another key, or lists whose lengths do not fit.
        """
        given = dict(options or {})
        image, label = _texts(given.pop("image", None)), _texts(given.pop("label", None))
        box, foreground = given.pop("box", None), given.pop("foreground", None)
        if given:
            remedy = "the keys are image, label, box and foreground"
            raise UserError(f"unknown keys in data.{key}", sorted(given), remedy)
        if image and label and len(image) != len(label):
            remedy = f"name as many in data.{key}.label as in data.{key}.image, in the same order"
            raise UserError(f"{len(image)} images but {len(label)} labels", [*image, *label], remedy)
        return cls(image, label, _boxes(box), foreground)

    def boxes(self, key: str) -> tuple[object, ...]:
        """One entry a volume: what `mitoseg.geometry.Box.parse` reads, or None for all of it.

        Raises:
            UserError: There are boxes, but not one for each volume.
        """
        if self.box and len(self.box) != len(self.image):
            example = f'data.{key}.box=["[0:20,:,:]",null]'
            remedy = f"give one for each volume, null where all of it is annotated, such as {example}"
            raise UserError(f"{len(self.box)} boxes for {len(self.image)} volumes", list(self.box), remedy)
        return self.box or (None,) * len(self.image)

    def foreground_labels(self, key: str) -> tuple[object, ...]:
        """One entry a volume: the label values that are mitochondria, one or a list; None where none are named.

        Raises:
            UserError: There are entries, but not one for each volume.
        """
        given, count = self.foreground, len(self.label)
        if given is None or isinstance(given, str) or not isinstance(given, Sequence):
            return (given,) * count
        nested = any(item is None or not isinstance(item, str | int) for item in given)
        if count == 1 and not nested:
            return (given,)
        if len(given) != count:
            remedy = f"give one for each volume, such as data.{key}.foreground=[[3,4],null]"
            raise UserError(f"{len(given)} entries of foreground for {count} volumes", given, remedy)
        return tuple(given)


def resolve(name: str, root: Path | None) -> str | None:
    """The path of a named volume: absolute, or in ``root``, or in the working directory; None if there is none."""
    for candidate in [os.path.join(root, name)] if root is not None else []:
        if file_of(candidate).exists():
            return candidate
    return name if file_of(name).exists() else None


def find(root: Path, name: str, *, deep: bool) -> str | None:
    """Look for a file or folder by its official name, in any letter case.

    A name of two parts, such as ``stack1/raw``, is found by both parts, or by the last alone right in ``root``.

    Args:
        root: Where to look.
        name: Official name, its parts separated by ``/``.
        deep: Look also a few folders further down, where archives keep their files.
    """
    parts = name.lower().split("/")
    for path in islice(_walk(root, _SEARCH_DEPTH if deep else 1), _SEARCH_ENTRIES):
        tail = [part.lower() for part in path.relative_to(root).parts]
        if tail == parts[-1:] or tail[-len(parts) :] == parts:
            return str(path)
    return None


def _walk(root: Path, depth: int) -> Iterator[Path]:
    """Files and folders level by level, hidden ones left out."""
    level = [root]
    for _ in range(depth):
        deeper = []
        for folder in level:
            try:
                entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
            except OSError:  # no folder, or closed to us
                continue
            yield from entries
            deeper += entries
        level = deeper


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(str(item) for item in value)
    return () if value is None else (str(value),)


def _boxes(value: object) -> tuple[object, ...]:
    """Entries for `Box.parse`: one box may come as text or as a list of its axes, several as a list of either."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return (value,)
    one_box = value and all(isinstance(item, str) and re.fullmatch(r"\s*\d*:\d*\s*", item) for item in value)
    return (tuple(value),) if one_box else tuple(value)
