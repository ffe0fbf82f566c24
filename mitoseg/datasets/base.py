"""What a data set hands to training: labelled regions, split by z-slabs with a gap between, as neighbours look alike.

    z  0        14   14+g                     151-g  151       165
       |validate| gap |         train           | gap |validate|

All ranges are half-open, ``(start, stop)``, in slices of the volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import Normalization
from mitoseg.volumes.base import Array, Bools, Volume, VoxelSize

IGNORE = 255  # label of voxels that are excluded from loss, class balance and scores
Range = tuple[int, int]


@dataclass(frozen=True)
class Region:
    """A labelled box of a volume; the image around it may be read as context, the labels may not.

    Labels are mapped already: uint8 0 background, 1 mitochondrion, `IGNORE`. ``domain`` is the tissue and microscope,
    where a data set has several.
    """

    image: Volume
    label: Volume
    box: Box
    name: str = ""
    domain: str = ""

    def read_image(self) -> Array:
        """``image_zyx`` of the box, in the stored dtype."""
        return self.image.read(self.box)

    def read_label(self) -> npt.NDArray[np.uint8]:
        """``label_zyx`` of the box: 0, 1 or `IGNORE`."""
        return self.label.read(self.box)


@dataclass(frozen=True)
class Splits:
    """The regions of each split, the voxel size (z, y, x) in nm if known, and what a run records of the data.

    ``provenance`` is plain data: name, licence, citation, files with size and sha256, warnings, label rules.
    ``normalization`` None: that of the training regions.
    """

    train: tuple[Region, ...]
    validation: tuple[Region, ...]
    test: tuple[Region, ...] = ()
    voxel_size: VoxelSize | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    normalization: Normalization | None = None


class Recipe(Protocol):
    """A data set: where it comes from and how it is split."""

    def prepare(self) -> None:
        """Download or generate what is missing; called once, on one process.

        Raises:
            UserError: It cannot be downloaded, generated or stored.
        """

    def splits(self) -> Splits:
        """Open the regions; reads no image voxels.

        Raises:
            UserError: Files are missing or do not fit together.
        """


def split_slabs(depth: int, slabs: Iterable[Sequence[int]], gap: int) -> tuple[list[Range], list[Range]]:
    """The training and validation ranges of ``depth`` slices if some slabs are held out behind a gap on each side.

    >>> split_slabs(165, [[0, 14], [151, 165]], gap=8)
    ([(22, 143)], [(0, 14), (151, 165)])
    """
    held_z = np.zeros(depth, bool)
    ranges = sorted((start, stop) for start, stop in slabs)
    for start, stop in ranges:
        if not 0 <= start < stop <= depth:
            remedy = f"give data.validation.slabs=[[z0,z1]] within [0,{depth}], or null to use data.validation.share"
            raise UserError("the validation slab is empty or leaves the volume", [start, stop], remedy)
        if held_z[start:stop].any():
            raise UserError("validation slabs overlap", [list(r) for r in ranges], "give each slice once")
        held_z[start:stop] = True
    train = _ranges(~_grown(held_z, gap))
    if not ranges or not train:
        remedy = "hold out fewer slices (data.validation.slabs, data.validation.share) or lower data.validation.gap"
        what = "no slab to validate on" if not ranges else f"no slice of {depth} is left to train on"
        raise UserError(what, {"slabs": [list(r) for r in ranges], "gap": gap}, remedy)
    return train, ranges


def fold_slabs(
    depth: int, folds: int, fold: int, gap: int, *, with_test: bool = True
) -> tuple[list[Range], list[Range], list[Range]]:
    """Training, validation and test ranges of one fold (from 0) of a cross-validation over z-slabs.

    Slab ``fold`` is tested on and the next one, cyclically, validates; without a test slab, ``fold`` validates. The
    test slabs of all folds tile the volume. The gap is taken from training, or from validation beside the test slab:

        folds=5 fold=1:   | train |gap| test | gap validate |gap| train | train |

    >>> fold_slabs(50, 5, 1, gap=2)
    ([(0, 8), (32, 50)], [(22, 30)], [(10, 20)])
    """
    least = 3 if with_test else 2
    if folds < least or not 0 <= fold < folds:
        remedy = f"data.folds is {least} or more and data.fold goes from 0 to data.folds-1"
        raise UserError("no such fold", f"fold={fold} of folds={folds}", remedy)
    slab_of_z = np.arange(depth) * folds // max(depth, 1)  # depth 0 is refused below
    test_z = (slab_of_z == fold) & with_test
    validation_z = (slab_of_z == ((fold + 1) % folds if with_test else fold)) & ~_grown(test_z, gap)
    train_z = ~_grown(test_z, gap) & ~_grown(validation_z, gap) & ~(slab_of_z == fold)
    if depth < folds or not validation_z.any() or not train_z.any():
        remedy = "use fewer data.folds, a smaller data.validation.gap, or a deeper volume"
        raise UserError("too few slices for the folds", f"{depth} slices, folds={folds}, gap={gap}", remedy)
    return _ranges(train_z), _ranges(validation_z), _ranges(test_z)


@dataclass(frozen=True)
class Validation:
    """How validation is cut from a training volume: slabs or the last share of the slices, behind a gap."""

    slabs: tuple[Range, ...] | None = None
    share: float = 0.15
    gap: int = 2

    @classmethod
    def of(cls, options: Mapping[str, object] | None, default: Validation | None = None) -> Validation:
        """Read ``{slabs, share, gap}``, completed by the default; a share alone replaces the slabs of the default."""
        default, given = default or cls(), dict(options or {})
        slabs = given.pop("slabs", None if "share" in given else default.slabs)
        share, gap = given.pop("share", default.share), given.pop("gap", default.gap)
        if given:
            raise UserError("unknown keys in data.validation", sorted(given), "the keys are slabs, share and gap")
        if type(gap) is not int or not isinstance(share, int | float):
            remedy = "give a whole number of slices such as gap=2, and a share such as 0.15"
            raise UserError("data.validation.gap or share is not a number", {"gap": gap, "share": share}, remedy)
        if slabs is not None and (not isinstance(slabs, Sequence) or isinstance(slabs, str)):
            slabs = [slabs]
        found = []
        for slab in slabs or ():
            if not isinstance(slab, Sequence) or len(slab) != 2 or not all(isinstance(z, int) for z in slab):
                remedy = "write data.validation.slabs=[[z0,z1],...], first slice and the one after"
                raise UserError("not a slab", slab, remedy)
            found.append((slab[0], slab[1]))
        return cls(None if slabs is None else tuple(found), float(share), gap)

    def ranges(self, start: int, stop: int) -> tuple[list[Range], list[Range]]:
        """Training and validation ranges of the annotated slices ``start`` to ``stop`` of a volume."""
        depth = stop - start
        if self.slabs is None:
            if not 0 < self.share < 1:
                remedy = "give data.validation.share between 0 and 1, such as 0.15"
                raise UserError("data.validation.share is not a fraction", self.share, remedy)
            slabs: tuple[Range, ...] = ((depth - max(1, round(depth * self.share)), depth),)
            if slabs[0][0] <= self.gap:
                what = f"too few slices to hold some out for validation behind a gap of {self.gap}"
                raise UserError(what, depth, "lower data.validation.share or data.validation.gap, or annotate more")
        else:
            slabs = tuple((a - start, b - start) for a, b in self.slabs)
            if any(a < 0 or b > depth for a, b in slabs):
                remedy = f"the labelled slices are {start}:{stop}; or give data.validation.slabs=null and a share"
                raise UserError("a validation slab leaves the labelled slices", [list(s) for s in self.slabs], remedy)
        train, held = split_slabs(depth, slabs, self.gap)
        return [(a + start, b + start) for a, b in train], [(a + start, b + start) for a, b in held]


def _grown(chosen_z: Bools, gap: int) -> Bools:
    """The chosen slices and those at most ``gap`` slices away."""
    if gap < 0:
        raise UserError("the gap between splits is negative", gap, "give data.validation.gap=0 or more")
    return np.asarray(ndimage.maximum_filter1d(chosen_z, 2 * min(gap, chosen_z.size) + 1, mode="constant"))


def _ranges(chosen_z: Bools) -> list[Range]:
    return [(run.start, run.stop) for (run,) in ndimage.find_objects(ndimage.label(chosen_z)[0])]
