"""Map labels of any kind to 0 (background), 1 (mitochondrion) and 255 (ignored), by one rule for the whole volume."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np
import numpy.typing as npt
import pandas as pd

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.progress import waiting
from mitoseg.volumes.base import Array, Bools, DerivedVolume, Volume, integer_volume, thin_slabs

logger = logging.getLogger(__name__)
RULES = ("auto", "nonzero", "half")
IGNORED = 255
_SOLID_SHARE = 0.25
_IMAGE_SHARE = 0.75  # fraction of voxels unlike a neighbour from which labels are an image; soft masks have less
_MANY_VALUES, _FEW_VALUES = 16, 8
_KEPT = 64  # largest number of distinct values that are counted
_TRANSPARENT = 2**64 - 1  # written by CREMI and Paintera for unlabelled voxels
_FULL_SCALES = (255, 65535)
MARKERS = (*_FULL_SCALES, 2**32 - 1)
_COLOURED = 2**24
_LOSSY = "the labels are compressed with loss, which changes values; only a mask of black and white survives it"
_LOSSLESS = "save them as PNG, or as TIFF with deflate"
_EXAMPLE = "give a value or a list, such as foreground=[3,4]"


@dataclass(frozen=True)
class ValueRule:
    """Foreground is any of ``values`` if given, else labels of at least ``threshold``, else labels above 0.

    ``numbered``: whether the values distinguish individual mitochondria.
    """

    threshold: float | None
    sentence: str
    numbered: bool = False
    values: tuple[int, ...] | None = None


class LabelVolume(DerivedVolume):
    """Labels as uint8 0, 1 and 255 (ignored), mapped from ``stored`` on reading.

    ``rule`` describes the rule; ``numbered``: whether stored values are instance numbers. ``ignore_label`` and the
    unannotated ``ignored_slices`` are ignored.
    """

    def __init__(self, volume: Volume, value_rule: ValueRule, ignore_label: int | None) -> None:
        super().__init__(volume, dtype=np.dtype(np.uint8))
        self.stored, self._value_rule, self.ignore_label = volume, value_rule, ignore_label
        is_numbered = value_rule.numbered or volume.info.metadata.get("kind") == "instances"
        self.numbered = is_numbered and value_rule.values is None
        ignored = "" if ignore_label is None else f"; value {ignore_label} is ignored"
        self.rule = value_rule.sentence + ignored
        self.ignored_slices: tuple[int, ...] = ()

    def alike(self, volume: Volume) -> LabelVolume:
        """Apply the same rule to another volume of these labels, such as a coarser level."""
        return LabelVolume(volume, self._value_rule, self.ignore_label)

    def _read(self, box: Box) -> npt.NDArray[np.uint8]:
        stored = self.stored.read(box)
        threshold, values = self._value_rule.threshold, self._value_rule.values
        if values is not None:
            foreground: Bools = reduce(np.logical_or, (stored == value for value in values))
        else:
            foreground = stored != 0 if threshold is None else stored >= threshold
        label_zyx = foreground.astype(np.uint8)
        if self.ignore_label is not None:
            label_zyx[stored == self.ignore_label] = IGNORED
        first = box.start[0]
        label_zyx[[z - first for z in self.ignored_slices if 0 <= z - first < len(label_zyx)]] = IGNORED
        return label_zyx


def map_labels(
    volume: Volume,
    *,
    rule: str = "auto",
    foreground: object = None,
    ignore_label: int | None = None,
    ignore_empty_slices: bool = False,
    require_foreground: bool = True,
) -> LabelVolume:
    """Map labels to 0, 1 and 255 (ignored) by one rule for the whole volume, which is logged.

    The stored values are counted once. The rule ``auto`` keeps 0 and 1; thresholds a grey mask (0 and 255 or 65535,
    possibly with values in between along edges) at half of full scale; takes other integers as instance numbers; and
    thresholds fractions from 0 to 1 at 0.5; it refuses several values without a 0, and anything that looks like an
    image. ``nonzero`` and ``half`` (at least half of full scale: 1, 255 or 65535) do not check this. 2**64 - 1, used
    by CREMI and Paintera for unlabelled voxels, is background if there is no 0. ``foreground`` are the value or values
    of mitochondria among several classes, colours as ``#rrggbb``; voxels of ``ignore_label``, and slices without
    foreground with ``ignore_empty_slices``, are ignored.
    """
    if rule not in RULES:
        raise UserError("no such rule for label values", rule, f"choose one of {', '.join(RULES)}")
    chosen = label_values(foreground)
    if ignore_label is not None and (isinstance(ignore_label, bool) or not isinstance(ignore_label, int)):
        raise UserError("ignore_label is not a whole number", ignore_label, "give one label value, such as 255")
    if chosen is not None and rule != "auto":
        raise UserError("foreground= replaces any rule", rule, "leave out label_rule_of_values=")
    if chosen is not None and ignore_label in chosen:
        raise UserError("a label value is both foreground and ignored", ignore_label, "remove it from one of the two")
    volume = volume.as_labels()
    lossy = volume.lossy
    survey = _survey(volume, ignore_label, chosen or ())
    if survey.high == _TRANSPARENT and chosen is None and not survey.zeros:
        volume = integer_volume(volume, background=_TRANSPARENT)
        survey = _survey(volume, ignore_label)
        logger.info("%s: %d, used by CREMI and Paintera for unlabelled voxels, is 0", volume.path, _TRANSPARENT)
    if chosen is not None:
        value_rule = _chosen_rule(survey, chosen, volume.path)
    else:
        value_rule = _choose_rule(survey, rule, volume.path)
        if rule == "auto" and volume.info.metadata.get("kind") not in ("mask", "instances"):
            _check_meaning(survey, volume.path)
    if lossy and (value_rule.threshold is None or (rule == "auto" and survey.halves[32] > 1.5 * survey.halves[224])):
        raise UserError(_LOSSY, volume.path, _LOSSLESS)
    if require_foreground and chosen is None and survey.above(value_rule.threshold) == 0:
        what = f"the labels contain no foreground ({value_rule.sentence}; values {survey.low:g} to {survey.high:g})"
        raise UserError(what, volume.path, "check that it is the right file, or set label_rule_of_values")
    labels = LabelVolume(volume, value_rule, ignore_label)
    if ignore_empty_slices:
        empty = [z for z in range(volume.shape[0]) if not (labels.read(one_slice(volume, z)) == 1).any()]
        labels.ignored_slices = tuple(empty)
        labels.rule += f"; slices without a label are ignored: {', '.join(map(str, empty)) or 'none'}"
    logger.info("%s: %s", volume.path, labels.rule)
    if chosen is None:
        _warn(survey, value_rule, volume.path)
    return labels


def label_values(given: object) -> tuple[int, ...] | None:
    """The label values given by the user: one or a list, integers or colours; None if none are given."""
    if given is None:
        return None
    found = []
    for value in given if isinstance(given, Sequence) and not isinstance(given, str) else [given]:
        text = str(value).strip().lower()
        if re.fullmatch(r"#[0-9a-f]{6}", text):
            red, green, blue = bytes.fromhex(text[1:])
            found.append(red if red == green == blue else _COLOURED + int(text[1:], 16))
        elif isinstance(value, bool) or not re.fullmatch(r"-?\d+", text):
            raise UserError("foreground is not a label value", given, _EXAMPLE)
        else:
            found.append(int(text))
    if not found:
        raise UserError("foreground= contains no value", given, _EXAMPLE)
    return tuple(dict.fromkeys(found))


def value_name(value: float) -> str:
    """A label value as the user would write it: colours as ``#rrggbb``."""
    if _COLOURED <= value < 2 * _COLOURED and value == int(value):
        return f"#{int(value) - _COLOURED:06x}"
    return str(int(value)) if value == int(value) else f"{value:g}"


def map_mask(volume: Volume, foreground: object = None, kind: str | None = None) -> Volume:
    """A stored result, possibly of another program, as a mask of the values in ``foreground``, or unchanged.

    Several colours, or values without a 0, are refused unless the user's ``kind`` makes their meaning clear.
    """
    if foreground is not None:
        if kind not in (None, "mask"):
            raise UserError("classes are chosen from labels, not from", f"kind={kind}", "leave out kind=")
        mask = map_labels(volume, foreground=foreground)
        mask.info = replace(mask.info, metadata={"kind": "mask"})
        return mask
    if volume.lossy and kind == "instances":
        raise UserError(_LOSSY, volume.path, _LOSSLESS)
    labels = volume.as_labels()
    unknown = volume.info.metadata.get("kind") is None
    if labels is not volume and kind != "probability" and unknown:
        survey = _survey(labels)
        if kind == "instances" and survey.high >= _COLOURED:
            return labels
        _check_colours(survey, volume.path, "kind=instances if each is an object")
    is_ids = kind is None and volume.dtype != np.uint8  # bytes are checked when their kind is determined
    if volume.dtype.kind in "iu" and unknown and (kind == "mask" or is_ids):
        _check_background(_survey(volume), volume.path, "kind=instances if all are objects")
    return volume


def holds_classes(volume: Volume) -> bool:
    """Whether stored integers look like several classes or objects rather than a mask or probabilities."""
    if volume.dtype.kind not in "iu" or volume.info.metadata.get("kind") is not None:
        return False
    survey = _survey(volume)
    return not survey.many and len(survey.values) > 2 - (not survey.zeros)


def holds_image(volume: Volume) -> bool:
    """Whether the values are those of an image rather than labels."""
    return _survey(volume).is_image


def one_slice(volume: Volume, z: int) -> Box:
    """The box of a whole slice."""
    return Box((z, 0, 0), (z + 1, *volume.shape[1:]))


def _chosen_rule(survey: _Survey, chosen: tuple[int, ...], path: str) -> ValueRule:
    there = [value for value in chosen if survey.chosen[value]]
    if not there:
        what = f"none of the values of foreground={list(map(value_name, chosen))} is in the labels"
        raise UserError(what.replace("'", ""), path, f"they hold {survey.listed()}")
    if len(there) < len(chosen):
        missing = ", ".join(value_name(value) for value in chosen if value not in there)
        logger.warning("%s: the labels hold no %s, only %s", path, missing, survey.listed())
    shares = ", ".join(f"{value_name(v)} ({100 * survey.chosen[v] / survey.voxels:.3g} %)" for v in there)
    return ValueRule(None, f"label values {shares} are foreground, as chosen", values=chosen)


def _check_background(survey: _Survey, path: str, otherwise: str) -> None:
    """Refuse several values without a 0: any of them may be the background."""
    if not survey.zeros and len(survey.values) > 1:
        what = f"no label is 0, so the background is unknown; the values are {survey.listed()}"
        remedy = f"name those of mitochondria, such as foreground={value_name(max(survey.values))}"
        raise UserError(what, path, f"{remedy}, or give {otherwise}")


def _check_meaning(survey: _Survey, path: str) -> None:
    if survey.is_image:
        what = f"an image instead of labels: values from {survey.low:g} to {survey.high:g} differ from voxel to voxel"
        raise UserError(what, path, "give the labels; a probability or a soft mask needs label_rule_of_values=half")
    if not survey.integral:
        return
    _check_background(survey, path, "label_rule_of_values=nonzero if all are mitochondria")
    if survey.high == _TRANSPARENT:
        what = f"the labels contain 0 and {_TRANSPARENT}, used by CREMI and Paintera for unlabelled voxels"
        raise UserError(what, path, f"give ignore_label={_TRANSPARENT} to exclude those voxels")
    _check_colours(survey, path, "label_rule_of_values=nonzero if all but black are")


def _check_colours(survey: _Survey, path: str, otherwise: str) -> None:
    """Refuse several colours, as it is unknown which are mitochondria."""
    colours = sorted(value for value in survey.values if _COLOURED <= value < 2 * _COLOURED)
    if len(colours) > 1 and all(value < 2 * _COLOURED for value in survey.values):
        what = f"the labels are in {len(colours)}{'+' * survey.many} colours: {survey.listed()}"
        remedy = f"name those of mitochondria, such as foreground={value_name(colours[0])}"
        raise UserError(what, path, f"{remedy}, or give {otherwise}")


def _warn(survey: _Survey, rule: ValueRule, path: str) -> None:
    marker = survey.high in MARKERS and rule.numbered and not survey.many and survey.high - 1 not in survey.values
    if marker and len(survey.values) > 2:
        text = "%s: the highest value, %d, counts as foreground; give ignore_label=%d if it means unlabelled"
        logger.warning(text, path, survey.high, survey.high)
    elif rule.numbered and 2 < len(survey.values) <= _FEW_VALUES:
        text = "%s: values %s are taken as instances; if they are classes, name those of mitochondria: foreground=%s"
        logger.warning(text, path, survey.listed(), value_name(survey.high))
    if survey.voxels and survey.above(rule.threshold) == survey.voxels:
        logger.warning("%s: every voxel is foreground; the values are %s", path, survey.listed())


def _choose_rule(survey: _Survey, rule: str, path: str) -> ValueRule:
    if survey.low < 0:
        remedy = "give ignore_label=-1 if that marks unlabelled voxels, or correct the labels"
        raise UserError(f"the labels contain negative values, down to {survey.low:g}", path, remedy)
    if rule == "nonzero":
        return ValueRule(None, "label values above 0 are foreground")
    if rule == "auto" and survey.integral and survey.high <= 1:
        return ValueRule(None, "label values are 0 and 1; 1 is foreground")
    # a mask of full scale may be smooth along its edges
    smooth = survey.solid < _SOLID_SHARE * survey.between
    smooth = smooth and (survey.full >= survey.between or len(survey.values) >= _MANY_VALUES)
    is_mask = survey.high in _FULL_SCALES and (survey.between == 0 or smooth)
    if rule == "auto" and survey.integral and not is_mask:
        return ValueRule(None, "label values are instance numbers; all but 0 are foreground", numbered=True)
    if survey.high <= 1:
        return ValueRule(0.5, "label values run from 0 to 1; 0.5 and above are foreground")
    for scale in _FULL_SCALES:
        if survey.high <= scale and (survey.integral or scale == 255):
            half = (scale + 1) // 2
            return ValueRule(half, f"label values are a mask of 0 to {scale}; {half} and above are foreground")
    what = f"the labels run from {survey.low:g} to {survey.high:g}, which is not a mask"
    raise UserError(what, path, "choose label_rule_of_values=nonzero")


@dataclass
class _Survey:
    """Counts over a label volume without ignored voxels; beyond 64 ``values``, only some, with unreliable counts.

    ``full``: voxels of 255 or 65535; ``between``: those of neither these nor 0; ``solid``: those of ``between`` equal
    to their four neighbours in the slice; ``halves``: those at or above each key.
    """

    low: float = math.inf
    high: float = -math.inf
    integral: bool = True
    voxels: int = 0
    zeros: int = 0
    full: int = 0
    between: int = 0
    solid: int = 0
    halves: dict[float, int] = field(default_factory=lambda: {0.5: 0, 32: 0, 128: 0, 224: 0, 32768: 0})
    values: dict[float, int] = field(default_factory=dict)
    chosen: dict[int, int] = field(default_factory=dict)

    @property
    def many(self) -> bool:
        return len(self.values) > _KEPT

    @property
    def is_image(self) -> bool:
        rough = self.between - self.solid > _IMAGE_SHARE * self.voxels
        return rough and len(self.values) >= _MANY_VALUES and self.solid < _SOLID_SHARE * self.between

    def listed(self) -> str:
        shares = {value: "" if self.many else f" ({100 * n / self.voxels:.3g} %)" for value, n in self.values.items()}
        more = ["and more"] if len(shares) > 10 else []
        return ", ".join([value_name(value) + shares[value] for value in sorted(shares)[:10]] + more)

    def above(self, threshold: float | None) -> int:
        """Number of foreground voxels: nonzero, or at least ``threshold`` (a key of ``halves``)."""
        return self.voxels - self.zeros if threshold is None else self.halves[threshold]

    def count(self, label_zyx: Array, ignore_label: int | None) -> None:
        """Add one slab to the counts."""
        kept = label_zyx if ignore_label is None else label_zyx[label_zyx != ignore_label]
        if not kept.size:
            return
        self.low, self.high = min(self.low, kept.min().item()), max(self.high, kept.max().item())
        for value in self.chosen:
            self.chosen[value] += int(np.count_nonzero(kept == value))
        values, counts = _histogram(kept, exact=not self.many)
        self.integral = self.integral and bool((values == np.floor(values)).all())
        middle = ~np.isin(values, (0, *_FULL_SCALES))
        self.voxels += int(counts.sum())
        self.zeros += int(counts[values == 0].sum())
        self.full += int(counts[np.isin(values, _FULL_SCALES)].sum())
        self.between += int(counts[middle].sum())
        for threshold in self.halves:
            self.halves[threshold] += int(counts[values >= threshold].sum())
        if not self.many:
            for value, count in zip(values[: 2 * _KEPT].tolist(), counts.tolist(), strict=False):
                self.values[value] = self.values.get(value, 0) + count
        if middle.any() and self.high <= _FULL_SCALES[-1]:  # larger values are instance numbers in any case
            self.solid += _solid(label_zyx, ignore_label)


def _survey(volume: Volume, ignore_label: int | None = None, chosen: Sequence[int] = ()) -> _Survey:
    survey = _Survey(chosen=dict.fromkeys(chosen, 0))
    with waiting(f"reading the labels of {volume.path}"):
        for slab in thin_slabs(volume.box):
            label_zyx = volume.read(slab)
            if label_zyx.dtype.kind == "f" and not np.isfinite(label_zyx).all():
                remedy = "replace them by a number, such as 255, and give ignore_label=255"
                raise UserError("the labels contain NaN or infinite values", volume.path, remedy)
            survey.count(label_zyx.view(np.uint8) if label_zyx.dtype == bool else label_zyx, ignore_label)
    return survey


def _histogram(label: Array, *, exact: bool) -> tuple[Array, Array]:
    """Distinct values and their counts; unless ``exact``, integers are clipped to -1 and 65536."""
    if label.dtype.kind == "f":
        return np.unique(label, return_counts=True)
    if exact and label.dtype.itemsize > 2:
        found = pd.Series(np.ravel(label)).value_counts(sort=False).sort_index()
        return found.index.to_numpy(), found.to_numpy()
    low, high = (0, np.iinfo(label.dtype).max) if label.dtype in (np.uint8, np.uint16) else (-1, _FULL_SCALES[-1] + 1)
    counts = np.zeros(high - low + 1, np.int64)
    for part in label if label.ndim > 1 else np.array_split(label, max(1, label.size // 2**20)):
        clipped = part if low == 0 else np.clip(part, low, high).astype(np.int32) - low
        counts += np.bincount(clipped.ravel(), minlength=counts.size)
    places = np.flatnonzero(counts)
    return places + low, counts[places]


def _solid(label_zyx: Array, ignore_label: int | None) -> int:
    """Number of voxels between the ends of the scale that equal their four neighbours in the slice."""
    label_zyx = label_zyx.astype(np.float32) if label_zyx.dtype == np.float16 else label_zyx  # float16 has no 65535
    inner = label_zyx[:, 1:-1, 1:-1]
    same = (inner == label_zyx[:, :-2, 1:-1]) & (inner == label_zyx[:, 2:, 1:-1])
    same &= (inner == label_zyx[:, 1:-1, :-2]) & (inner == label_zyx[:, 1:-1, 2:])
    for end in (0, *_FULL_SCALES, *(() if ignore_label is None else (ignore_label,))):
        same &= inner != end
    return int(np.count_nonzero(same))
