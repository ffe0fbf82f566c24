"""Open an image and its labels, check that they belong together, and cut them into regions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import PurePath

from mitoseg.datasets.base import IGNORE, Region
from mitoseg.datasets.naming import Named
from mitoseg.datasets.splitting import Range
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import check_same_shape, map_labels, open_volume
from mitoseg.volumes.base import Volume
from mitoseg.volumes.opening import warn_of_gaps
from mitoseg.volumes.padding import blanked, with_padding

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Reader:
    """How volumes are opened.

    Attributes:
        label_rule_of_values: What counts as mitochondrion, see `mitoseg.volumes.map_labels`.
        foreground: The label values that are mitochondria, for all volumes that name none, or None.
        ignore_label: Label value of voxels that enter nothing, or None.
        ignore_empty_slices: Whether slices without a label enter nothing either.
        axes: Letters of the stored axes where the files do not say, or None.
        voxel_size: (z, y, x) in nm, or None for what the files say.
        padding: What is done about margins of one value, see `mitoseg.volumes.padding.with_padding`.
        rules: How the values of each label volume were read, in words; filled while opening.
    """

    label_rule_of_values: str = "auto"
    foreground: object = None
    ignore_label: int | None = None
    ignore_empty_slices: bool = False
    axes: str | None = None
    voxel_size: Sequence[float] | None = None
    padding: str = "none"
    rules: dict[str, str] = field(default_factory=dict)
    _labels: dict[str, Volume] = field(default_factory=dict, repr=False)

    def pairs(self, named: Named, key: str) -> list[Pair]:
        """Open the volumes of one split.

        Args:
            named: Paths that exist, as many images as labels.
            key: The split, for messages.

        Raises:
            UserError: A file cannot be read, shapes differ, a box does not fit, or labels hold no foreground.
        """
        images = [open_volume(path, axes=self.axes, voxel_size=self.voxel_size) for path in named.image]
        labels = [self._open_label(path) for path in named.label]
        for volume in (*images, *labels):
            warn_of_gaps(volume)
        for image, label in zip(images, labels, strict=True):
            check_same_shape(image, label)
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
        if key not in self._labels:
            mapped = map_labels(
                label,
                rule=self.label_rule_of_values if foreground is None else "auto",
                foreground=foreground,
                ignore_label=self.ignore_label,
                ignore_empty_slices=self.ignore_empty_slices,
            )
            if mapped.ignored_slices:
                _log.warning("%s: slices without a label are left out: %s", label.path, list(mapped.ignored_slices))
            self._labels[key], self.rules[label.path] = mapped, mapped.rule
        return self._labels[key]


def check_apart(train: Sequence[Region], held: Sequence[Region], gap: int) -> list[str]:
    """Look for training and held-out regions of one file that share voxels or come close.

    Args:
        train: Training regions.
        held: Regions of the validation or the test split.
        gap: Slices that should lie between.

    Returns:
        A sentence for each pair of regions that are nearer than ``gap`` slices.

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


def check_once(regions: Sequence[Region]) -> None:
    """Refuse regions of one split that share voxels: they would count twice.

    Raises:
        UserError: Two regions of one file overlap.
    """
    for a, b in combinations(regions, 2):
        if a.image.path == b.image.path and a.box.clip(b.box).size:
            raise UserError("two parts of a split overlap", [a.name, b.name], "name each voxel once")
