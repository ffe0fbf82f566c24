"""Scores of instances, for ``evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from mitoseg.cli.labelling import chosen_labelling
from mitoseg.engines import Engine
from mitoseg.errors import UserError
from mitoseg.evaluation import Bootstrap
from mitoseg.evaluation.decision import decide
from mitoseg.evaluation.instances import evaluate_instances, find_overlaps, prediction_instances, truth_instances
from mitoseg.geometry import Box
from mitoseg.volumes import LabelVolume, Volume


def check_instance_options(cfg: DictConfig) -> None:
    """Refuse values that cannot be meant.

    Raises:
        UserError: ``instances`` is no switch, or ``small_objects`` no number of voxels.
    """
    if cfg.instances is not None and not isinstance(cfg.instances, bool):
        remedy = "give instances=true, instances=false, or null for predictions that are instances"
        raise UserError("instances is neither true nor false", cfg.instances, remedy)
    if isinstance(cfg.small_objects, bool) or not isinstance(cfg.small_objects, int) or cfg.small_objects < 0:
        raise UserError("small_objects is not a number of voxels", cfg.small_objects, "give 0 or more")
    chosen_labelling(cfg)


def number_instances(
    cfg: DictConfig,
    prediction: Volume,
    truth: LabelVolume,
    *,
    threshold: float | None = None,
    kind: str | None = None,
    voxel_size: Sequence[float] | None = None,
    engine: Engine | None = None,
) -> Volume | None:
    """The ids of a prediction, once for scores and report; None where neither asks for them.

    Args:
        cfg: The keys ``instances``, ``labelling`` and ``report``.
        prediction: Instances, or what is to be labelled first.
        truth: Mapped labels, for the voxel size.
        threshold: Of the prediction.
        kind: Of the prediction.
        voxel_size: (z, y, x) in nm.
        engine: Started, numbers; None: this process.

    Raises:
        UserError: Ids or options are no good.
    """
    if not (cfg.report or _wanted(cfg, prediction, threshold, kind)):
        return None
    size = voxel_size or prediction.voxel_size or truth.voxel_size
    return prediction_instances(
        prediction, chosen_labelling(cfg), threshold=threshold, kind=kind, voxel_size=size, engine=engine
    )


def _wanted(cfg: DictConfig, prediction: Volume, threshold: float | None, kind: str | None) -> bool:
    """Whether instances are to be scored."""
    wanted = decide(prediction, threshold, kind).kind == "instances" if cfg.instances is None else cfg.instances
    return bool(wanted)


def score_instances(
    cfg: DictConfig,
    prediction: Volume,
    result: Volume | None,
    truth: LabelVolume,
    draws: Bootstrap,
    *,
    crop: Box | None = None,
    threshold: float | None = None,
    kind: str | None = None,
    engine: Engine | None = None,
) -> dict[str, Any] | None:
    """Scores of the instances, if the prediction holds some or ``instances=true`` asks for them.

    Whole volumes are numbered, and then cropped.

    Args:
        cfg: The keys ``instances``, ``labelling`` and ``small_objects``.
        prediction: Instances, or what was labelled.
        result: Its ids, of `number_instances`.
        truth: Mapped labels.
        draws: How the intervals are made.
        crop: The part that is scored.
        threshold: Of the prediction.
        kind: Of the prediction.
        engine: Started, counts; None: this process.

    Returns:
        The keys of `evaluate_instances`, ``labelling`` (None where ids were stored), ``truth_labelled``; or None.

    Raises:
        UserError: Ids or options are no good.
    """
    if result is None or not _wanted(cfg, prediction, threshold, kind):
        return None
    labelling = chosen_labelling(cfg)
    numbered = truth_instances(truth, labelling.connectivity, engine=engine)
    overlaps = find_overlaps(result, numbered, labels=truth, crop=crop, engine=engine)
    scores = evaluate_instances([overlaps], small=cfg.small_objects, bootstrap=draws)
    made = None if decide(prediction, threshold, kind).kind == "instances" else asdict(labelling)
    return {**scores, "labelling": made, "truth_labelled": not truth.numbered}
