"""The report, one HTML file that holds everything it shows and asks nothing of any other place.

Each section is a dictionary and the template of its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from pandas import DataFrame

from mitoseg import __version__
from mitoseg.evaluation.instances import SMALL, prediction_instances
from mitoseg.evaluation.report.errors import gallery_section
from mitoseg.evaluation.report.markup import Content, ReportOptions, number
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
from mitoseg.volumes.base import Volume, VoxelSize, mask_volume
from mitoseg.volumes.predicted import decide


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
    """
    check_output(path, overwrite)
    shown = (title, image, truth, mask, instances, table, scores or {}, provenance or {}, voxel_size, crop)
    write_text(path, render(Content(*shown, options or ReportOptions())), overwrite=overwrite)
    return Path(path)


def report_prediction(
    path: Path | str,
    *,
    prediction: Volume,
    threshold: float | None = None,
    kind: str | None = None,
    labelling: Labelling | None = None,
    small: int = SMALL,
    instances: Volume | None = None,
    **shown: Any,  # noqa: ANN401
) -> Path:
    """Write the report of a stored prediction, and of its evaluation where ``truth`` and ``scores`` are given.

    Its ids are ``instances`` where they are numbered already; ids that must be computed are held where they fit,
    without those of fewer than ``small`` voxels. Further arguments as for `write_report`.
    """
    mask = foreground_of(prediction, threshold, kind)
    if instances is None:
        size = shown.get("voxel_size")
        instances = prediction_instances(prediction, labelling, threshold=threshold, kind=kind, voxel_size=size)
    if instances is not prediction:
        instances = hold(instances, shown.get("crop"), small)
    return write_report(path, mask=mask, instances=instances, **shown)


def foreground_of(prediction: Volume, threshold: float | None = None, kind: str | None = None) -> Volume:
    """The mask of a stored prediction, decided while it is read."""
    return mask_volume(prediction, decide(prediction, threshold, kind).foreground)


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
            script=Markup("\n").join(_static(f"{name}.js") for name in ("base", "slices", "scene", "table")),
            version=__version__,
        )
    )


@cache
def _templates() -> Environment:
    loader = PackageLoader("mitoseg.evaluation.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_function"] = _dumps
    environment.filters["number"] = number
    return environment


def _dumps(values: object, **_: object) -> str:
    """JSON that no script element ends at, once ``tojson`` has escaped it."""
    return json.dumps(plain(values), ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _static(name: str) -> Markup:
    return Markup(files("mitoseg.evaluation.report").joinpath("static", name).read_text(encoding="utf-8"))
