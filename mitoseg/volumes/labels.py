"""Labels of any make as 0 (background), 1 (mitochondrion) and 255 (ignored), by one rule for the whole volume."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.base import Volume, VolumeInfo
from mitoseg.volumes.survey import Survey, survey_labels

logger = logging.getLogger(__name__)

RULES = ("auto", "nonzero", "half")
IGNORED = 255
_SOLID_SHARE = 0.25
_MANY_VALUES = 16


@dataclass(frozen=True)
class ValueRule:
    """What makes a label a mitochondrion: above zero (``threshold`` None), or at least ``threshold``.

    ``numbered`` says whether the values tell one mitochondrion from another.
    """

    threshold: float | None
    sentence: str
    numbered: bool = False


class LabelVolume(Volume):
    """Labels as uint8 0, 1 and 255 (ignored), mapped while they are read.

    Attributes:
        rule: The rule, in words.
        stored: The labels as they are stored.
        numbered: Whether these are instance numbers.
        ignored_slices: Slices that nobody annotated, see `ignore_slices`.
    """

    def __init__(self, volume: Volume, value_rule: ValueRule, ignore_label: int | None) -> None:
        info = volume.info
        super().__init__(VolumeInfo(info.path, info.shape, np.dtype(np.uint8), info.voxel_size, info.metadata))
        self.stored, self._threshold, self._ignore_label = volume, value_rule.threshold, ignore_label
        self.numbered = value_rule.numbered or info.metadata.get("kind") == "instances"
        ignored = "" if ignore_label is None else f"; value {ignore_label} is ignored"
        self.rule = value_rule.sentence + ignored
        self.ignored_slices: tuple[int, ...] = ()

    def ignore_slices(self, slices: Sequence[int]) -> None:
        """Ignore all voxels of some slices."""
        self.ignored_slices = tuple(slices)
        self.rule += f"; slices without a label are ignored: {', '.join(map(str, slices)) or 'none'}"

    def find_gaps(self) -> UserError | None:
        """See `Volume.find_gaps`."""
        return self.stored.find_gaps()

    def read(self, box: Box | None = None) -> npt.NDArray[np.uint8]:
        """Read one box as ``label_zyx``: 0, 1 or 255; see `Volume.read`."""
        stored = self.stored.read(box)
        foreground = stored != 0 if self._threshold is None else stored >= self._threshold
        label_zyx = foreground.astype(np.uint8)
        if self._ignore_label is not None:
            label_zyx[stored == self._ignore_label] = IGNORED
        first = 0 if box is None else box.start[0]
        label_zyx[[z - first for z in self.ignored_slices if 0 <= z - first < len(label_zyx)]] = IGNORED
        return label_zyx


def map_labels(
    volume: Volume,
    *,
    rule: str = "auto",
    ignore_label: int | None = None,
    ignore_empty_slices: bool = False,
    require_foreground: bool = True,
) -> LabelVolume:
    """Map labels to 0, 1 and 255 (ignored) by one rule for the whole volume, which is logged.

    The stored values are surveyed once, slab by slab. ``auto`` then takes

    - values 0 and 1 as they are;
    - a grey mask, 0 and 255 (or 65535) with or without values between them along the edges, at half of full scale;
    - any other integers as instance numbers: all that are not zero are foreground;
    - fractions from 0 to 1 at 0.5.

    Args:
        volume: The labels.
        rule: ``auto``, ``nonzero`` or ``half`` (at least half of full scale: 1, 255 or 65535).
        ignore_label: A stored value whose voxels count nowhere, or None.
        ignore_empty_slices: Whether a slice without a foreground voxel counts nowhere, as one that nobody annotated.
        require_foreground: Whether labels without a single foreground voxel are refused.

    Raises:
        UserError: No such rule, values that are no labels, or no foreground.
    """
    if rule not in RULES:
        raise UserError("no such rule for label values", rule, f"choose one of {', '.join(RULES)}")
    survey = survey_labels(volume, ignore_label)
    value_rule = choose_rule(survey, rule, volume.path)
    if require_foreground and survey.above(value_rule.threshold) == 0:
        what = f"the labels hold no foreground ({value_rule.sentence}; values {survey.low:g} to {survey.high:g})"
        raise UserError(what, volume.path, "check that it is the right file, or set label_rule_of_values")
    labels = LabelVolume(volume, value_rule, ignore_label)
    if ignore_empty_slices:
        labels.ignore_slices([z for z in range(volume.shape[0]) if not (labels.read(one_slice(volume, z)) == 1).any()])
    logger.info("%s: %s", volume.path, labels.rule)
    if survey.values == {0, 1, 255} and value_rule.threshold is None:
        text = "%s: values are 0, 1 and 255; 255 counts as foreground, give ignore_label=255 if it means unlabelled"
        logger.warning(text, volume.path)
    return labels


def one_slice(volume: Volume, z: int) -> Box:
    """The box of a whole slice."""
    return Box((z, 0, 0), (z + 1, *volume.shape[1:]))


def choose_rule(survey: Survey, rule: str, path: str) -> ValueRule:
    """The rule for the values of a whole volume; see `map_labels`.

    Raises:
        UserError: The values are no labels.
    """
    if survey.low < 0:
        remedy = "give ignore_label=-1 if that marks unlabelled voxels, or mend the labels"
        raise UserError(f"the labels hold negative values, down to {survey.low:g}", path, remedy)
    if rule == "nonzero":
        return ValueRule(None, "label values above 0 are foreground")
    if rule == "half" or not survey.integral:
        return _half(survey, path)
    if survey.high <= 1:
        return ValueRule(None, "label values are 0 and 1; 1 is foreground")
    if _is_grey_mask(survey):
        return _half(survey, path)
    return ValueRule(None, "label values are instance numbers; all but 0 are foreground", numbered=True)


def _half(survey: Survey, path: str) -> ValueRule:
    """Foreground from half of full scale on."""
    if survey.high <= 1:
        return ValueRule(0.5, "label values run from 0 to 1; 0.5 and above are foreground")
    for scale in (255, 65535):
        if survey.high <= scale and (survey.integral or scale == 255):
            threshold = (scale + 1) // 2
            return ValueRule(
                threshold, f"label values are a mask of 0 to {scale}; {threshold} and above are foreground"
            )
    raise UserError(
        f"the labels run from {survey.low:g} to {survey.high:g}, which is no mask",
        path,
        "choose label_rule_of_values=nonzero",
    )


def _is_grey_mask(survey: Survey) -> bool:
    """Whether integers are a mask of full scale, perhaps smoothed along the edges, and no instance numbers.

    A smoothed edge has values between the ends that differ from pixel to pixel; an instance is of one piece, so most
    of its voxels equal their four neighbours in the slice.
    """
    if survey.high not in (255, 65535):
        return False
    if survey.between == 0:
        return True
    smooth = survey.solid < _SOLID_SHARE * survey.between
    return smooth and (survey.full >= survey.between or len(survey.values) >= _MANY_VALUES)


__all__ = ["IGNORED", "RULES", "LabelVolume", "ValueRule", "choose_rule", "map_labels"]
