"""Stored probabilities with their truth, as `postprocessing.py` scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.evaluation.score import check_shapes
from mitoseg.geometry import Box
from mitoseg.metrics import Counts, count
from mitoseg.segmentation import Postprocess
from mitoseg.volumes import map_labels, open_volume
from mitoseg.volumes.predicted import decide


@dataclass(frozen=True)
class Case:
    """A prediction with its truth.

    Attributes:
        name: Of the file.
        probability_zyx: float32.
        truth_zyx: 0, 1, and 255 where nothing counts.
        image_zyx: The EM image, or None.
        threshold: Of the probability.
        voxel_size: (z, y, x) in nm, or None.
        scored: The part that counts.
    """

    name: str
    probability_zyx: npt.NDArray[np.float32]
    truth_zyx: npt.NDArray[np.uint8]
    image_zyx: npt.NDArray[np.generic] | None
    threshold: float
    voxel_size: Sequence[float] | None
    scored: Box

    def stages(self, steps: Postprocess) -> dict[str, Counts]:
        """Counts after the threshold and after each later step."""
        masks = steps.stages(self.probability_zyx, self.threshold, self.voxel_size, self.image_zyx)
        part, truth_zyx = self.scored.slices, self.truth_zyx[self.scored.slices]
        return {name: count(mask_zyx[part], truth_zyx) for name, mask_zyx in masks}


def open_cases(
    predictions: Sequence[str],
    truths: Sequence[str],
    images: Sequence[str] = (),
    score: Sequence[str] = (),
    *,
    threshold: float | None = None,
) -> list[Case]:
    """Read all volumes.

    Args:
        predictions: Paths of probabilities.
        truths: A path for each prediction.
        images: The same, or none.
        score: Slices of each prediction, ``start:stop``, or none for all.
        threshold: In place of those in the metadata.

    Raises:
        UserError: A volume or an option is invalid.
    """
    lists = {"truths": truths, "images": images, "score": score}
    for key, words in lists.items():
        if len(words) != len(predictions) and (words or key == "truths"):
            raise UserError(f"{key} does not fit {len(predictions)} predictions", list(words), "give one for each")
    columns = [words or [None] * len(predictions) for words in lists.values()]
    return [_open(*row, threshold) for row in zip(predictions, *columns, strict=True)]


def _open(prediction: str, truth: str, image: str | None, part: str | None, threshold: float | None) -> Case:
    volume, label = open_volume(prediction), map_labels(open_volume(truth))
    volumes = {"prediction": volume, "truth": label} | ({"image": open_volume(image)} if image else {})
    check_shapes(**volumes)
    decision = decide(volume, threshold)
    if decision.kind != "probability":
        raise UserError("these are no probabilities", prediction, "give what save=probability wrote")
    probability_zyx = volume.read().astype(np.float32) / np.float32(decision.scale)
    image_zyx = volumes["image"].read() if image else None
    scored = Box.parse(f"{part or ':'},:,:", volume.shape)
    size = volume.voxel_size or label.voxel_size
    name = Path(prediction).name
    return Case(name, probability_zyx, label.read(), image_zyx, decision.threshold, size, scored)
