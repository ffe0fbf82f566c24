"""Your own annotated volumes: one or several, whole or in part, with a validation slab or in folds."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path, PurePath
from typing import ClassVar

from mitoseg.datasets.base import IGNORE, Range, Region, Splits, Validation, fold_slabs
from mitoseg.datasets.download import file_of, fingerprint
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import check_same_shape, map_labels, open_volume
from mitoseg.volumes.base import Volume
from mitoseg.volumes.opening import warn_of_gaps, warn_of_sizes
from mitoseg.volumes.padding import blanked, with_padding

_log = logging.getLogger(__name__)
_SEARCH_DEPTH = 4  # levels of folders in which official names are looked for: an unpacked archive has up to so many
_SEARCH_ENTRIES = 50_000  # files that are examined before giving up: data.root may be somebody's whole disk


class Files:
    """A recipe of volumes that are on disk; ``conf/data/files.yaml`` explains every option."""

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
        self._given = {"train": Named.of(train, "train"), "test": Named.of(test, "test")}
        self.validation = Validation.of(validation, self.default_validation)
        self.folds, self.fold = folds, fold
        self.label_rule_of_values, self.ignore_label, self.axes = label_rule_of_values, ignore_label, axes
        if ignore_empty_slices not in (True, False):
            remedy = "give data.ignore_empty_slices=true or data.ignore_empty_slices=false"
            raise UserError("data.ignore_empty_slices is neither true nor false", ignore_empty_slices, remedy)
        self.foreground, self.ignore_empty_slices, self.padding = foreground, ignore_empty_slices, padding
        self.voxel_size = None if voxel_size is None else tuple(float(v) for v in voxel_size)
        self._splits: Splits | None = None
        self._mapped: dict[str, Volume] = {}
        self._rules: dict[str, str] = {}

    def prepare(self) -> None:
        """Nothing to do: the files are there or they are not."""

    def splits(self) -> Splits:
        """Open the volumes, check them, and cut them into splits; the second call gives the same object."""
        if self._splits is not None:
            return self._splits
        paths = {key: self.paths(key) for key in ("train", "test")}
        annotated = {key: self.annotated(paths[key], key) for key in paths}
        regions = self._cut(annotated["train"], annotated["test"])
        warnings = self.warnings(paths, annotated) + _check_apart(regions, self.validation.gap)
        if warnings:
            _log.warning("%s: %s", self.name, "; ".join(warnings))
        voxel_size = next((r.image.voxel_size for r in annotated["train"] if r.image.voxel_size), None)
        provenance = {
            **self.facts_for_provenance(),
            "files": [
                {"role": f"{key}.{kind}", **fingerprint(path)}
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
        self._splits = Splits(train, validation, test, voxel_size, provenance)
        return self._splits

    def named(self, key: str) -> Named:
        """The volumes that are named for ``train`` or ``test``."""
        return self._given[key]

    def paths(self, key: str) -> Named:
        """The volumes of ``train`` or ``test`` as paths that exist; empty where none are named."""
        named = self.named(key)
        if key == "train" and not named.image:
            remedy = "give data.train.image=VOLUME data.train.label=VOLUME"
            raise UserError("no training volumes are named", None, remedy)
        if len(named.image) != len(named.label):
            what = f"data.{key} names {len(named.image)} images but {len(named.label)} labels"
            raise UserError(what, None, f"give as many data.{key}.label= as data.{key}.image=, in the same order")
        image, label = (tuple(resolve(n, self.root) for n in names) for names in (named.image, named.label))
        return replace(named, image=image, label=label)

    def warnings(self, paths: Mapping[str, Named], regions: Mapping[str, list[Region]]) -> list[str]:
        """What is odd about the annotated parts of ``train`` and ``test``, a sentence each."""
        sizes = {r.image.voxel_size for r in (*regions["train"], *regions["test"]) if r.image.voxel_size}
        if len(sizes) > 1:
            return [f"the volumes differ in voxel size ({', '.join(map(str, sorted(sizes)))} nm)"]
        return []

    def facts_for_provenance(self) -> dict[str, object]:
        """What is known of the data set, as plain data."""
        return {"name": self.name}

    def annotated(self, named: Named, key: str) -> list[Region]:
        """The annotated parts of the volumes of ``train`` or ``test``, whose paths exist."""
        images = [open_volume(path, axes=self.axes, voxel_size=self.voxel_size) for path in named.image]
        labels = [self._open_label(path) for path in named.label]
        for volume in (*images, *labels):
            warn_of_gaps(volume)
        for image, label in zip(images, labels, strict=True):
            check_same_shape(image, label)
            if self.voxel_size is None:
                warn_of_sizes(image, label)
        found = []
        parts = zip(images, labels, named.boxes(key), named.foreground_labels(key), strict=True)
        for image, label, box, values in parts:
            whole = image.box if box is None else Box.parse(box, image.shape)
            tissue = with_padding(image, self.padding)
            mapped = self._map(label, self.foreground if values is None else values)
            found.append(Region(tissue, blanked(mapped, tissue.padding, IGNORE), whole))
        return found

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

    def _cut(self, train: Sequence[Region], test: Sequence[Region]) -> dict[str, list[Region]]:
        regions: dict[str, list[Region]] = {"train": [], "validation": [], "test": []}
        for part in train:
            z0, z1 = part.box.start[0], part.box.stop[0]
            cut: Sequence[list[Range]]
            if self.folds is None:
                cut = (*self.validation.ranges(z0, z1), [])
            else:
                slabs = fold_slabs(z1 - z0, self.folds, self.fold, self.validation.gap, with_test=not test)
                cut = tuple([(a + z0, b + z0) for a, b in ranges] for ranges in slabs)
            for key, ranges in zip(regions, cut, strict=True):
                regions[key] += [_slab(part, start, stop) for start, stop in ranges]
        regions["test"] += [_slab(part, part.box.start[0], part.box.stop[0]) for part in test]
        return regions


def _slab(region: Region, start: int, stop: int) -> Region:
    box = Box((start, *region.box.start[1:]), (stop, *region.box.stop[1:]))
    return replace(region, box=box, name=f"{PurePath(region.image.path).name} {box}")


def _check_apart(regions: Mapping[str, Sequence[Region]], gap: int) -> list[str]:
    """Refuse parts that share voxels, and warn of training and held-out parts that are closer than the gap."""

    def meet(a: Region, b: Region, gap: int) -> bool:
        return a.image.path == b.image.path and a.box.grow((gap, 0, 0)).clip(b.box).size > 0

    same_split = [pair for key in regions for pair in combinations(regions[key], 2)]
    held = [(a, b) for key in ("validation", "test") for a in regions["train"] for b in regions[key]]
    for a, b in (*same_split, *held):
        if meet(a, b, 0):
            raise UserError("parts of the data overlap", [a.name, b.name], "name each voxel once, to train or to test")
    return [f"{a.name} and {b.name} are fewer than {gap} slices apart" for a, b in held if meet(a, b, gap)]


@dataclass(frozen=True)
class Named:
    """Images, their labels, the annotated part of each (None: all of it) and the label values of mitochondria."""

    image: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    box: tuple[object, ...] = ()
    foreground: object = None

    @classmethod
    def of(cls, options: Mapping[str, object] | None, key: str) -> Named:
        """Read ``image``, ``label``, ``box`` and ``foreground`` of ``data.<key>``: a value, a list or None each."""
        given = dict(options or {})
        image, label = _texts(given.pop("image", None)), _texts(given.pop("label", None))
        box, foreground = given.pop("box", None), given.pop("foreground", None)
        if given:
            remedy = "the keys are image, label, box and foreground"
            raise UserError(f"unknown keys in data.{key}", sorted(given), remedy)
        # one box may come as a text or as a list of its axes, several as a list of either
        boxes = list(box) if isinstance(box, Sequence) and not isinstance(box, str | bytes) else [box]
        if boxes and all(isinstance(item, str) and re.fullmatch(r"\s*\d*:\d*\s*", item) for item in boxes):
            boxes = [tuple(boxes)]
        return cls(image, label, () if box is None else tuple(boxes), foreground)

    def boxes(self, key: str) -> tuple[object, ...]:
        """One entry a volume: what `mitoseg.geometry.Box.parse` reads, or None for all of it."""
        if self.box and len(self.box) != len(self.image):
            example = f'data.{key}.box=["[0:20,:,:]",null]'
            remedy = f"give one for each volume, null where all of it is annotated, such as {example}"
            raise UserError(f"{len(self.box)} boxes for {len(self.image)} volumes", list(self.box), remedy)
        return self.box or (None,) * len(self.image)

    def foreground_labels(self, key: str) -> tuple[object, ...]:
        """One entry a volume: the label values that are mitochondria, one or a list; None where none are named."""
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


def resolve(name: str, root: Path | None) -> str:
    """The path of a named volume: absolute, or in ``root``, or in the working directory."""
    for path in (name,) if root is None else (os.path.join(root, name), name):
        if file_of(path).exists():
            return path
    where = f"{root} and the working directory" if root else "the working directory"
    raise UserError("no such volume", name, f"relative names are searched in {where}: check data.root=")


def find(root: Path, name: str, *, deep: bool) -> str | None:
    """Look for a file or folder by its official name, in any letter case; ``deep``: in subfolders as well.

    A name of two parts, such as ``stack1/raw``, is found by both parts, or by the last alone right in ``root``.
    """
    parts, level, seen = name.lower().split("/"), [root], 0
    for _ in range(_SEARCH_DEPTH if deep else 1):
        folders, level = level, []
        for folder in folders:
            entries: list[Path] = []
            with contextlib.suppress(OSError):  # no folder, or closed to us
                entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
            for path in entries:
                seen += 1
                tail = [part.lower() for part in path.relative_to(root).parts]
                if seen <= _SEARCH_ENTRIES and (tail == parts[-1:] or tail[-len(parts) :] == parts):
                    return str(path)
            level += entries
            if seen >= _SEARCH_ENTRIES:
                return None
    return None


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(str(item) for item in value)
    return () if value is None else (str(value),)
