"""The report, one HTML file that holds everything it shows and asks nothing of any other place; one for each command.

Each section is a dictionary and the template of its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from pandas import DataFrame

from mitoseg import __version__
from mitoseg.evaluation.instances import SMALL, prediction_instances
from mitoseg.evaluation.report.errors import gallery_section
from mitoseg.evaluation.report.markup import Content, ReportOptions, foreground_of, number
from mitoseg.evaluation.report.pictures import hold, plain_table, scene_section, slices_section
from mitoseg.evaluation.report.tables import (
    curve_section,
    distribution_section,
    headline_section,
    origin_section,
    score_section,
    table_section,
    volume_line,
)
from mitoseg.geometry import Box
from mitoseg.segmentation import Labelling
from mitoseg.storage import check_output, plain, write_text
from mitoseg.volumes.base import Volume, VoxelSize

_SCRIPTS = ("base.js", "slices.js", "scene.js", "table.js")


def write_report(
    path: Path | str,
    *,
    title: str,
    image: Volume | None = None,
    truth: Volume | None = None,
    mask: Volume | None = None,
    instances: Volume | None = None,
    table: DataFrame | None = None,
    scores: Mapping[str, object] | None = None,
    provenance: Mapping[str, object] | None = None,
    voxel_size: VoxelSize | None = None,
    crop: Box | None = None,
    options: ReportOptions | None = None,
    overwrite: bool = True,
) -> Path:
    """Write a report; a section appears where there is something to show in it.

    Args:
        path: The HTML file.
        title: Over the page.
        image: Grey levels.
        truth: Mapped labels: 0 background, 1 foreground, 255 ignored.
        mask: What was found: not zero is foreground. `foreground_of` makes it from probabilities. None: the instances.
        instances: Ids, 0 for background.
        table: One row an instance, with its id in ``instance``. None: size and place, from the instances.
        scores: What `mitoseg.evaluation.evaluate` gave, or ``metrics.json`` holds.
        provenance: What ``provenance.json`` holds.
        voxel_size: (z, y, x) in nm; None: as the first volume that knows says.
        crop: The part of the volumes that is shown; None: everything.
        options: How much of everything, and so how large the file is.
        overwrite: Whether a file that exists may be replaced.

    Returns:
        The path.

    Raises:
        UserError: The volumes differ in shape, the crop leaves them, or the file cannot be written.
    """
    check_output(path, overwrite)
    content = Content(
        title=title,
        image=image,
        truth=truth,
        result=mask,
        instances=instances,
        table=table,
        scores=scores or {},
        provenance=provenance or {},
        voxel_size=voxel_size,
        crop=crop,
        options=options or ReportOptions(),
    )
    write_text(path, render(content), overwrite=overwrite)
    return Path(path)


def render(content: Content) -> str:
    """The page of a report."""
    table = content.table
    if table is None and content.instances is not None and content.box is not None:
        table = plain_table(content.instances, content.box, content.spacing)
    sections = (
        ("headline", "", headline_section(content, table)),
        ("slices", "Slices", slices_section(content)),
        ("scene-part", "In three dimensions", scene_section(content)),
        ("distributions", "Size and shape", distribution_section(table)),
        ("measurements", "Measurements", table_section(table, content.options.rows)),
        ("scores", "Scores", score_section(content.scores)),
        ("curves", "Curves", curve_section(content.scores)),
        ("errors", "Worst errors", gallery_section(content)),
        ("origin", "Where this comes from", origin_section(content.provenance)),
    )
    return (
        _templates()
        .get_template("page.html")
        .render(
            title=content.title,
            style=_static("report.css"),
            volume=volume_line(content),
            sections=[section for section in sections if section[2] is not None],
            script=Markup("\n").join(_static(name) for name in _SCRIPTS),
            version=__version__,
        )
    )


def _templates() -> Environment:
    """Templates in which all text is escaped; ``tojson`` writes what no script element ends at."""

    def dumps(values: object, **_: object) -> str:
        return json.dumps(plain(values), ensure_ascii=True, allow_nan=False, separators=(",", ":"))

    environment = Environment(
        loader=PackageLoader("mitoseg.evaluation.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_function"] = dumps
    environment.filters["number"] = number
    return environment


def _static(name: str) -> Markup:
    return Markup(files("mitoseg.evaluation.report").joinpath("static", name).read_text(encoding="utf-8"))


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
