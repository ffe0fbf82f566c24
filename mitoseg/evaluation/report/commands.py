"""The reports of the commands: one function each, from what the command has at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pandas import DataFrame

from mitoseg.evaluation.instances import SMALL, prediction_instances
from mitoseg.evaluation.report.objects import hold
from mitoseg.evaluation.report.options import ReportOptions, foreground_of
from mitoseg.evaluation.report.page import write_report
from mitoseg.geometry import Box
from mitoseg.segmentation import Labelling
from mitoseg.volumes.base import Volume, VoxelSize

NAME = "report.html"


def report_evaluation(
    folder: Path | str,
    scores: Mapping[str, object],
    *,
    title: str,
    prediction: Volume,
    truth: Volume,
    image: Volume | None = None,
    threshold: float | None = None,
    kind: str | None = None,
    crop: Box | None = None,
    voxel_size: VoxelSize | None = None,
    provenance: Mapping[str, object] | None = None,
    labelling: Labelling | None = None,
    small: int = SMALL,
    instances: Volume | None = None,
    options: ReportOptions | None = None,
) -> Path:
    """Write ``report.html`` of an evaluation.

    Args:
        folder: Of the run.
        scores: What `mitoseg.evaluation.evaluate` gave.
        title: Over the page.
        prediction: Probabilities, a mask or instances.
        truth: Mapped labels.
        image: Grey levels; without it the overlays lie on an even ground.
        threshold: Overrides that of the prediction.
        kind: Overrides what the prediction's metadata says it is.
        crop: The part that was scored.
        voxel_size: (z, y, x) in nm; None: as a volume says.
        provenance: What ``provenance.json`` holds.
        labelling: How a mask becomes instances.
        small: Instances of fewer voxels are left out.
        instances: The ids of the prediction, where they are numbered already; else that is done here.
        options: How much of everything.

    Returns:
        The file.

    Raises:
        UserError: As `write_report`, or the kind of the prediction cannot be told.
    """
    mask, shown = found_in(
        prediction,
        threshold=threshold,
        kind=kind,
        crop=crop,
        voxel_size=voxel_size,
        labelling=labelling,
        small=small,
        instances=instances,
    )
    return write_report(
        Path(folder) / NAME,
        title=title,
        image=image,
        truth=truth,
        mask=mask,
        instances=shown,
        scores=scores,
        provenance=provenance,
        voxel_size=voxel_size,
        crop=crop,
        options=options,
    )


def report_prediction(
    path: Path | str,
    *,
    title: str,
    prediction: Volume,
    image: Volume | None = None,
    threshold: float | None = None,
    voxel_size: VoxelSize | None = None,
    provenance: Mapping[str, object] | None = None,
    labelling: Labelling | None = None,
    options: ReportOptions | None = None,
    overwrite: bool = True,
) -> Path:
    """Write the report of a prediction, for which there is no truth; arguments as for `report_evaluation`."""
    mask, instances = found_in(prediction, threshold=threshold, voxel_size=voxel_size, labelling=labelling)
    return write_report(
        path,
        title=title,
        image=image,
        mask=mask,
        instances=instances,
        provenance=provenance,
        voxel_size=voxel_size,
        options=options,
        overwrite=overwrite,
    )


def report_measurement(
    path: Path | str,
    table: DataFrame,
    *,
    title: str,
    instances: Volume,
    image: Volume | None = None,
    voxel_size: VoxelSize | None = None,
    provenance: Mapping[str, object] | None = None,
    options: ReportOptions | None = None,
    overwrite: bool = True,
) -> Path:
    """Write the report of measured instances.

    Args:
        path: The HTML file.
        table: One row an instance, with its id in ``instance``.
        title: Over the page.
        instances: Ids, 0 for background.
        image: Grey levels.
        voxel_size: (z, y, x) in nm; None: as a volume says.
        provenance: What ``provenance.json`` holds.
        options: How much of everything.
        overwrite: Whether a file that exists may be replaced.

    Returns:
        The file.

    Raises:
        UserError: As `write_report`.
    """
    return write_report(
        path,
        title=title,
        image=image,
        instances=instances,
        table=table,
        provenance=provenance,
        voxel_size=voxel_size,
        options=options,
        overwrite=overwrite,
    )


def found_in(
    prediction: Volume,
    *,
    threshold: float | None = None,
    kind: str | None = None,
    crop: Box | None = None,
    voxel_size: VoxelSize | None = None,
    labelling: Labelling | None = None,
    small: int = SMALL,
    instances: Volume | None = None,
) -> tuple[Volume, Volume]:
    """Mask and instances of a stored prediction; ``instances`` are its ids, where they are numbered already.

    Returns:
        The mask, and the ids, both decided while they are read; ids that must be computed are held where they fit.

    Raises:
        UserError: The kind of the prediction cannot be told.
    """
    mask = foreground_of(prediction, threshold, kind)
    numbered = instances
    if numbered is None:
        numbered = prediction_instances(prediction, labelling, threshold=threshold, kind=kind, voxel_size=voxel_size)
    return mask, numbered if numbered is prediction else hold(numbered, crop, small)
