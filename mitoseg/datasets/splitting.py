"""Which slices train and which are held out: z-slabs with a gap between, because neighbouring slices look alike.

    z  0        14   14+g                     151-g  151       165
       |validate| gap |         train           | gap |validate|

All ranges are half-open, ``(start, stop)``, in slices of the volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mitoseg.errors import UserError

Range = tuple[int, int]
BoolMask = npt.NDArray[np.bool_]


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
        return cls(None if slabs is None else _as_slabs(slabs), float(share), gap)

    def ranges(self, start: int, stop: int) -> tuple[list[Range], list[Range]]:
        """Training and validation ranges of the annotated slices ``start`` to ``stop`` of a volume."""
        depth = stop - start
        if self.slabs is None:
            if not 0 < self.share < 1:
                remedy = "give data.validation.share between 0 and 1, such as 0.15"
                raise UserError("not a share of the slices", self.share, remedy)
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


def _as_slabs(slabs: object) -> tuple[Range, ...]:
    found = []
    for slab in slabs if isinstance(slabs, Sequence) and not isinstance(slabs, str) else [slabs]:
        if not isinstance(slab, Sequence) or len(slab) != 2 or not all(isinstance(z, int) for z in slab):
            remedy = "write data.validation.slabs=[[z0,z1],...], first slice and the one after"
            raise UserError("not a slab", slab, remedy)
        found.append((slab[0], slab[1]))
    return tuple(found)


def _grown(chosen_z: BoolMask, gap: int) -> BoolMask:
    """The chosen slices and those at most ``gap`` slices away."""
    if gap < 0:
        raise UserError("the gap between splits is negative", gap, "give data.validation.gap=0 or more")
    return np.asarray(ndimage.maximum_filter1d(chosen_z, 2 * min(gap, chosen_z.size) + 1, mode="constant"))


def _ranges(chosen_z: BoolMask) -> list[Range]:
    """The runs of chosen slices."""
    return [(run.start, run.stop) for (run,) in ndimage.find_objects(ndimage.label(chosen_z)[0])]
