"""The last step of training: what a checkpoint must say about whole volumes, measured on the validation slabs.

While it trains, a block network is watched by the fast method (one answer every few pixels). Volumes are predicted by
another one, whose map differs a little; so calibration and threshold are chosen anew for it, and the cost of bfloat16
is measured.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from mitoseg.geometry import Box
from mitoseg.inference import Prediction, choose_method, predict_volume
from mitoseg.inference.precision import has_bf16
from mitoseg.metrics import BINS, choose_decision, curve, logit_histogram, scores
from mitoseg.storage import atomic_output
from mitoseg.volumes import Volume

log = logging.getLogger(__name__)


class LabelledBox(Protocol):
    """A labelled part of a volume; a `mitoseg.datasets.Region`."""

    @property
    def image(self) -> Volume:
        """The grey values."""
        ...

    @property
    def label(self) -> Volume:
        """Mapped labels: 0, 1, 255 for ignored."""
        ...

    @property
    def box(self) -> Box:
        """The part."""
        ...


class Counter:
    """Counts the log-odds of a part's voxels by class; see `mitoseg.metrics.logit_histogram`."""

    def __init__(self, part: LabelledBox) -> None:
        self.part = part
        self.histogram = np.zeros((2, BINS), np.int64)

    def write(self, box: Box, log_odds_zyx: npt.NDArray[Any], /) -> None:
        """Count one box, in coordinates of the part."""
        truth_zyx = self.part.label.read(box.shift(self.part.box.start))
        self.histogram += logit_histogram(log_odds_zyx, truth_zyx)


def count_log_odds(prediction: Prediction, parts: Sequence[LabelledBox]) -> npt.NDArray[np.int64]:
    """Raw log-odds of all parts, counted by class (2, bins)."""
    total = np.zeros((2, BINS), np.int64)
    for part in parts:
        counter = Counter(part)
        predict_volume(replace(prediction, save="log_odds"), part.image, counter, box=part.box)
        total += counter.histogram
    return total


def finish_checkpoint(path: Path, prediction: Prediction, parts: Sequence[LabelledBox]) -> dict[str, Any]:
    """Choose calibration and threshold for a method, measure what bfloat16 costs, and write both into the checkpoint.

    Args:
        path: The checkpoint, rewritten in place.
        prediction: Its network with the method, calibrated with the prior shift of training.
        parts: The validation slabs.

    Returns:
        The new entries: ``calibration``, ``threshold``, ``method``, ``precision``.
    """
    hist = count_log_odds(replace(prediction, precision="fp32"), parts)
    decision = choose_decision(hist, prediction.calibration.prior_shift)
    precision: dict[str, Any] = {}
    device = next(prediction.network.parameters()).device
    if has_bf16(device):
        halved = curve(count_log_odds(replace(prediction, precision="bf16"), parts))
        counts = (decision.counts, halved.at(decision.raw_threshold))
        full, half = (scores(c)["jaccard_foreground"] for c in counts)
        precision["bf16"] = {"jaccard_drop": full - half, "jaccard_fp32": full, "device": device.type}
        log.info("bfloat16 costs %.5f of the JAC on validation (%.4f in float32)", full - half, full)
    entries = {
        "calibration": asdict(decision.calibration),
        "threshold": decision.threshold,
        "method": choose_method(prediction.method, prediction.network),
        "precision": precision,
    }
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    checkpoint["mitoseg"] |= entries
    with atomic_output(path, overwrite=True) as temporary:
        torch.save(checkpoint, temporary)
    return entries
