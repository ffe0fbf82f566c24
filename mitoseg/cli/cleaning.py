"""Post-processing of stored probabilities, for the commands that offer ``postprocess=``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from mitoseg.errors import UserError
from mitoseg.evaluation.decision import decide
from mitoseg.segmentation import Postprocess
from mitoseg.volumes import ArrayVolume, Volume

log = logging.getLogger(__name__)


def chosen_steps(cfg: DictConfig) -> Postprocess | None:
    """What ``postprocess=`` asks for; None where it is no more than the threshold."""
    steps: Postprocess = instantiate(cfg.postprocess)
    return None if steps == Postprocess() else steps


def clean(
    steps: Postprocess,
    prediction: Volume,
    *,
    image: Volume | None = None,
    threshold: float | None = None,
    kind: str | None = None,
    voxel_size: Sequence[float] | None = None,
) -> ArrayVolume:
    """A stored probability as a clean mask, in memory.

    Args:
        steps: What is done.
        prediction: Probabilities.
        image: The EM image, whose edges the watershed follows.
        threshold: Overrides that of the prediction.
        kind: Overrides what the prediction's metadata says it is.
        voxel_size: (z, y, x) in nm; None: the prediction's.

    Raises:
        UserError: The prediction holds no probabilities, or a step cannot be taken.
    """
    decision = decide(prediction, threshold, kind)
    if decision.kind != "probability":
        raise UserError(
            "postprocess needs probabilities", decision.kind, "give postprocess=none, or the probabilities"
        )
    size = voxel_size or prediction.voxel_size
    probability_zyx = prediction.read().astype(np.float32) / np.float32(decision.scale)
    image_zyx = None if image is None or steps.watershed is None else image.read()
    mask_zyx = steps(probability_zyx, decision.threshold, size, image_zyx)
    metadata = {"kind": "mask", "threshold": decision.threshold, "postprocess": asdict(steps)}
    return ArrayVolume(mask_zyx, prediction.voxel_size, prediction.path, metadata)
