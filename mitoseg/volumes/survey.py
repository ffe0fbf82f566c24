"""What values a label volume holds, counted slab by slab."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mitoseg.errors import UserError
from mitoseg.geometry import slabs
from mitoseg.volumes.base import Array, Volume

_SLAB_VOXELS = 2**24
_KEPT = 64
"""Distinct values that are told apart."""
FULL_SCALES = (255, 65535)


@dataclass
class Survey:
    """Counts over a whole label volume, without the ignored voxels.

    Attributes:
        low: The smallest value.
        high: The largest value.
        integral: Whether all values are whole numbers.
        voxels: How many were counted.
        zeros: Voxels of value 0.
        full: Voxels of value 255 or 65535, the ends of 8 and 16 bit masks.
        between: Voxels of any other value.
        solid: Those of ``between`` that equal their four neighbours in the slice.
        halves: Voxels at or above 0.5, 128 and 32768.
        values: Voxels of each distinct value; of more than 64, some of the values and no counts to rely on.
        chosen: Voxels of the values that the user names.
    """

    low: float = math.inf
    high: float = -math.inf
    integral: bool = True
    voxels: int = 0
    zeros: int = 0
    full: int = 0
    between: int = 0
    solid: int = 0
    halves: dict[float, int] = field(default_factory=lambda: {0.5: 0, 128: 0, 32768: 0})
    values: dict[float, int] = field(default_factory=dict)
    chosen: dict[int, int] = field(default_factory=dict)

    @property
    def many(self) -> bool:
        """Whether there are more than 64 distinct values."""
        return len(self.values) > _KEPT

    def listed(self, name: Callable[[float], str] = "{:g}".format) -> str:
        """The values and their shares of the voxels, the first ten in ascending order."""
        shares = {value: "" if self.many else f" ({100 * n / self.voxels:.3g} %)" for value, n in self.values.items()}
        more = ["and more"] if len(shares) > 10 else []
        return ", ".join([name(value) + shares[value] for value in sorted(shares)[:10]] + more)

    def above(self, threshold: float | None) -> int:
        """Voxels that are foreground: not zero, or at least ``threshold`` (a key of ``halves``)."""
        return self.voxels - self.zeros if threshold is None else self.halves[threshold]


def survey_labels(volume: Volume, ignore_label: int | None = None, chosen: Sequence[int] = ()) -> Survey:
    """Count the values of a label volume, slab by slab.

    Args:
        volume: The labels.
        ignore_label: A value to leave out, or None.
        chosen: Values whose voxels are counted one by one.

    Raises:
        UserError: Values are NaN or infinite, or the file is damaged.
    """
    survey = Survey(chosen=dict.fromkeys(chosen, 0))
    depth = max(1, _SLAB_VOXELS // max(1, math.prod(volume.shape[1:])))
    for slab in slabs(volume.box, depth):
        label_zyx = volume.read(slab)
        if label_zyx.dtype.kind == "f" and not np.isfinite(label_zyx).all():
            remedy = "write a number in their place, such as 255, and give it as ignore_label=255"
            raise UserError("the labels hold NaN or infinite values", volume.path, remedy)
        if label_zyx.dtype == bool:
            label_zyx = label_zyx.view(np.uint8)
        _count(survey, label_zyx, ignore_label)
    return survey


def _count(survey: Survey, label_zyx: Array, ignore_label: int | None) -> None:
    """Add one slab to the counts."""
    kept = label_zyx if ignore_label is None else label_zyx[label_zyx != ignore_label]
    if not kept.size:
        return
    survey.low, survey.high = min(survey.low, kept.min().item()), max(survey.high, kept.max().item())
    for value in survey.chosen:
        survey.chosen[value] += int(np.count_nonzero(kept == value))
    values, counts = _histogram(kept, exact=not survey.many)
    survey.integral = survey.integral and bool((values == np.floor(values)).all())
    survey.voxels += int(counts.sum())
    survey.zeros += int(counts[values == 0].sum())
    survey.full += int(counts[np.isin(values, FULL_SCALES)].sum())
    middle = ~np.isin(values, (0, *FULL_SCALES))
    survey.between += int(counts[middle].sum())
    for threshold in survey.halves:
        survey.halves[threshold] += int(counts[values >= threshold].sum())
    if not survey.many:
        for value, count in zip(values[: 2 * _KEPT].tolist(), counts.tolist(), strict=False):
            survey.values[value] = survey.values.get(value, 0) + count
    if middle.any() and survey.high <= FULL_SCALES[-1]:  # larger values are instance numbers in any case
        survey.solid += _solid(label_zyx, ignore_label)


def _histogram(label: Array, *, exact: bool) -> tuple[Array, Array]:
    """Distinct values and their counts; unless ``exact``, integers below -1 and above 65536 are taken as those."""
    if label.dtype.kind == "f":
        return np.unique(label, return_counts=True)
    if exact and label.dtype.itemsize > 2:
        found = pd.Series(np.ravel(label)).value_counts(sort=False).sort_index()
        return found.index.to_numpy(), found.to_numpy()
    low, high = (0, np.iinfo(label.dtype).max) if label.dtype in (np.uint8, np.uint16) else (-1, FULL_SCALES[-1] + 1)
    counts = np.zeros(high - low + 1, np.int64)
    for part in label if label.ndim > 1 else np.array_split(label, max(1, label.size // 2**20)):
        clipped = part if low == 0 else np.clip(part, low, high).astype(np.int32) - low
        counts += np.bincount(clipped.ravel(), minlength=counts.size)
    places = np.flatnonzero(counts)
    return places + low, counts[places]


def _solid(label_zyx: Array, ignore_label: int | None) -> int:
    """Voxels between the ends of the scale that equal their four neighbours in the slice."""
    inner = label_zyx[:, 1:-1, 1:-1]
    same = (inner == label_zyx[:, :-2, 1:-1]) & (inner == label_zyx[:, 2:, 1:-1])
    same &= (inner == label_zyx[:, 1:-1, :-2]) & (inner == label_zyx[:, 1:-1, 2:])
    for end in (0, *FULL_SCALES):
        same &= inner != end
    if ignore_label is not None:
        same &= inner != ignore_label
    return int(np.count_nonzero(same))
