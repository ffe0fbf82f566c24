"""How the grey values of a volume come to those that a network was trained on."""

from __future__ import annotations

import logging

from mitoseg.errors import UserError
from mitoseg.networks.checkpoint import Model
from mitoseg.volumes import Normalization, Volume, measure_normalization
from mitoseg.volumes.drift import FAR, grey_distance, sample_greys
from mitoseg.volumes.matching import MatchedVolume

log = logging.getLogger(__name__)
CHOICES = ("checkpoint", "volume", "match")


def adapt_greys(choice: str, volume: Volume, model: Model) -> tuple[Volume, Normalization | None]:
    """The volume as it is to be read, and its normalisation; None for that of the checkpoint.

    Args:
        choice: ``checkpoint``: as training's; ``volume``: by its own mean and standard deviation; ``match``: spread as
            training's, quantile by quantile.
        volume: The input.
        model: What predicts.

    Raises:
        UserError: No such choice, or the checkpoint does not know the quantiles of its training volume.
    """
    if choice not in CHOICES:
        raise UserError("no such way to normalise", choice, f"choose one of {', '.join(CHOICES)}")
    if choice == "volume":
        return volume, measure_normalization([(volume, volume.box)])
    if choice == "match":
        quantiles = model.record.get("grey_quantiles")
        if not isinstance(quantiles, list) or len(quantiles) < 2:
            what = "the checkpoint does not know how its training volume's grey values are spread"
            raise UserError(what, None, "give normalize=volume")
        return MatchedVolume(volume, quantiles), None
    warn_of_other_greys(volume, model)
    return volume, None


def warn_of_other_greys(volume: Volume, model: Model) -> None:
    """One warning where grey values are far from training's; nothing where the checkpoint does not know those."""
    distance = greys_apart(volume, model)
    if distance > FAR:
        text = (
            "%s has other grey values than training (%.2g of its deviations apart): give normalize=match, "
            "or invert the image if it is bright where training is dark"
        )
        log.warning(text, volume.path, distance)


def greys_apart(volume: Volume, model: Model) -> float:
    """How far grey values are from training's, see `mitoseg.volumes.drift`; 0 where the checkpoint does not know."""
    quantiles = model.record.get("grey_quantiles")
    if not isinstance(quantiles, list) or len(quantiles) < 2:
        return 0.0
    greys = sample_greys(volume)
    return grey_distance(greys, quantiles) if greys.size else 0.0
