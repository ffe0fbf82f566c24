"""From a stored prediction to foreground or background: what its values mean, and the threshold."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from mitoseg.errors import UserError, is_number
from mitoseg.geometry import slabs
from mitoseg.volumes.base import Array, Volume

log = logging.getLogger(__name__)
KINDS = ("probability", "mask", "instances")  # the kinds of stored predictions


@dataclass(frozen=True)
class Decision:
    """How the values of a prediction (one of `KINDS`) are turned into foreground.

    Probabilities of at least ``threshold`` are foreground (``source``: where it comes from); other kinds if nonzero.
    ``scale`` is the stored value of probability 1.
    """

    kind: str
    threshold: float
    source: str
    scale: float = 1.0

    def foreground(self, values: Array) -> npt.NDArray[np.bool_]:
        """Foreground of a block of stored values."""
        if self.kind != "probability":
            return np.not_equal(values, 0)
        if values.dtype.kind == "f" and values.size and not (values.min() >= 0 and values.max() <= self.scale):
            what, extremes = "the prediction holds no probabilities; its values span", (values.min(), values.max())
            raise UserError(what, tuple(map(float, extremes)), "they must be in [0, 1]")
        return np.asarray(values >= self.threshold * self.scale)

    def log_odds(self, values: Array) -> npt.NDArray[np.floating]:
        """Log-odds of a block of stored probabilities.

        The smallest and largest integer, which would be 0 and 1, each cover half a step, and its middle is used.
        """
        if values.dtype.kind in "ui":
            step = 1 / self.scale
            return np.asarray(logit(np.clip(values * np.float32(step), step / 4, 1 - step / 4)))
        return np.asarray(logit(values / np.float32(self.scale)))


def decide(prediction: Volume, threshold: float | None = None, kind: str | None = None) -> Decision:
    """Decide how to interpret a prediction; ``threshold`` (else 0.5) and ``kind`` override its metadata.

    Without these, floats are probabilities, bool is a mask, and wide integers are instance ids. Bytes with at most one
    value besides zero are a mask; others are probabilities times 255 if a threshold is given, and otherwise an error.
    """
    metadata = prediction.info.metadata
    kind = kind or metadata.get("kind") or kind_of_type(prediction.dtype)
    if kind is None:  # bytes
        seen = np.zeros(256, bool)
        for slab in slabs(prediction.box, 16):
            seen |= np.bincount(prediction.read(slab).ravel(), minlength=256) > 0
        kind = "mask" if seen[1:].sum() <= 1 else "probability"
        if kind == "probability" and threshold is None:
            chosen = "foreground= (of evaluate: prediction_foreground=) with the values of mitochondria"
            remedy = f"say kind=mask, kind=instances, kind=probability with a threshold=, or {chosen}"
            raise UserError("cannot tell a probability from a label in the bytes of", prediction.path, remedy)
    if kind not in KINDS:
        raise UserError("no such kind of prediction", kind, f"choose one of {', '.join(KINDS)}")
    if threshold is not None:
        source = "given"
    elif metadata.get("threshold") is not None:
        threshold, source = float(metadata["threshold"]), "the prediction's metadata"
    else:
        threshold, source = 0.5, "default"
    if not is_number(threshold) or not 0 <= threshold <= 1:
        raise UserError("the threshold is not a probability", threshold, "give a number from 0 to 1")
    if kind != "probability":
        if source == "given":
            log.warning("threshold=%g is not used: %s is of kind=%s", threshold, prediction.path, kind)
        return Decision(kind, threshold, f"not used: {kind}, nonzero is foreground")
    stored = 1.0 if prediction.dtype.kind in "fb" else float(np.iinfo(prediction.dtype).max)
    return Decision(kind, threshold, source, float(metadata.get("scale") or stored))


def kind_of_type(dtype: np.dtype[Any]) -> str | None:
    """The default kind for a voxel type; None for bytes, for which it depends on the values."""
    if dtype == np.uint8:
        return None
    return {"f": "probability", "b": "mask"}.get(dtype.kind, "instances")
