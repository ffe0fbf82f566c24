"""``report=true``: what a command hands to the report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from mitoseg.cli.labelling import chosen_labelling
from mitoseg.datasets.checksums import fingerprint
from mitoseg.errors import UserError
from mitoseg.evaluation.report import report_evaluation, report_prediction
from mitoseg.geometry import Box
from mitoseg.networks.bundle import DEFAULT
from mitoseg.provenance import collect
from mitoseg.storage import read_json
from mitoseg.volumes import Volume, VoxelSize, open_volume
from mitoseg.volumes.units import check_voxel_size

log = logging.getLogger(__name__)


def check_report(cfg: DictConfig) -> None:
    """Refuse a ``report`` that is no switch.

    Raises:
        UserError: It is neither true nor false.
    """
    if not isinstance(cfg.report, bool):
        raise UserError("report is neither true nor false", cfg.report, "give report=true or report=false")


def report_scores(
    cfg: DictConfig,
    folder: Path,
    scores: Mapping[str, object],
    volumes: Mapping[str, Volume],
    *,
    threshold: float | None,
    crop: Box | None,
    kind: str | None,
    voxel_size: Sequence[float] | None,
    instances: Volume | None = None,
    console: Console | None = None,
) -> Path:
    """Write ``report.html`` of an evaluation beside its ``provenance.json``.

    Args:
        cfg: The keys of ``conf/evaluate.yaml``.
        folder: Of the run.
        scores: What ``metrics.json`` holds.
        volumes: ``prediction``, ``truth`` (mapped) and, if given, ``image``, as they were scored.
        threshold: Of the evaluation, as the next three; see `mitoseg.evaluation.evaluate`.
        crop: The part that was scored.
        kind: Of the prediction.
        voxel_size: (z, y, x) in nm.
        instances: The ids of the prediction, where they are numbered already.
        console: Where to say where the report is; None for nowhere.

    Raises:
        UserError: The file cannot be written.
    """
    provenance = {**read_json(folder / "provenance.json"), "seed": cfg.seed, "files": checksums(volumes)}
    path = report_evaluation(
        folder,
        scores,
        title=f"Evaluation of {Path(cfg.prediction).name}",
        prediction=volumes["prediction"],
        truth=volumes["truth"],
        image=volumes.get("image"),
        provenance=provenance,
        threshold=threshold,
        crop=crop,
        kind=kind,
        voxel_size=None if voxel_size is None else check_voxel_size(voxel_size),
        labelling=chosen_labelling(cfg),
        small=cfg.small_objects,
        instances=instances,
    )
    if console is not None:
        console.print(f"report in {path}", soft_wrap=True, markup=False)
    return path


def report_prediction_of(
    cfg: DictConfig, path: Path, image: Volume, *, voxel_size: VoxelSize | None, chosen: Mapping[str, object]
) -> None:
    """Write the report of a volume that was just predicted.

    Args:
        cfg: The keys of ``conf/predict.yaml``.
        path: The report.
        image: The input.
        voxel_size: (z, y, x) in nm, where it is known.
        chosen: What was decided for this volume; for the record.

    Raises:
        UserError: The file cannot be written.
    """
    log.info("making the report")
    prediction = open_volume(cfg.output)
    origin = collect(input=cfg.input, checkpoint=cfg.checkpoint or DEFAULT, output=cfg.output, chosen=chosen)
    origin["files"] = checksums({"input": image, "prediction": prediction})
    report_prediction(
        path,
        title=f"Prediction of {Path(cfg.input).name}",
        prediction=prediction,
        image=image,
        voxel_size=voxel_size,
        provenance=origin,
        labelling=chosen_labelling(cfg),
    )
    Console().print(f"report in {path}", soft_wrap=True, markup=False)


def checksums(volumes: Mapping[str, Volume]) -> list[dict[str, object]]:
    """Role, path, size and checksum of what lies behind volumes; nothing of what is no file."""
    found: list[dict[str, object]] = []
    for role, volume in volumes.items():
        with suppress(OSError):
            found.append({"role": role, **asdict(fingerprint(volume.path))})
    return found
