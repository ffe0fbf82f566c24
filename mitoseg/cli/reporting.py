"""``report=true``: what a command hands to the report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from mitoseg.datasets.checksums import fingerprint
from mitoseg.errors import UserError
from mitoseg.evaluation.report import report_evaluation
from mitoseg.geometry import Box
from mitoseg.storage import read_json
from mitoseg.volumes import Volume
from mitoseg.volumes.base import VoxelSize


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
    voxel_size: VoxelSize | None,
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

    Raises:
        UserError: The file cannot be written.
    """
    provenance = {**read_json(folder / "provenance.json"), "seed": cfg.seed, "files": checksums(volumes)}
    return report_evaluation(
        folder,
        scores,
        title=Path(cfg.prediction).name,
        prediction=volumes["prediction"],
        truth=volumes["truth"],
        image=volumes.get("image"),
        provenance=provenance,
        threshold=threshold,
        crop=crop,
        kind=kind,
        voxel_size=voxel_size,
    )


def checksums(volumes: Mapping[str, Volume]) -> list[dict[str, object]]:
    """Role, path, size and checksum of what lies behind volumes; nothing of what is no file."""
    found: list[dict[str, object]] = []
    for role, volume in volumes.items():
        with suppress(OSError):
            found.append({"role": role, **asdict(fingerprint(volume.path))})
    return found
