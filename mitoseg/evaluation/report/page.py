"""The report: one HTML file that holds everything it shows and asks nothing of any other place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from pandas import DataFrame

from mitoseg import __version__
from mitoseg.evaluation.report.curves import curve_section
from mitoseg.evaluation.report.distributions import distribution_section
from mitoseg.evaluation.report.gallery import gallery_section
from mitoseg.evaluation.report.headline import headline_section, volume_line
from mitoseg.evaluation.report.markup import Html, element, join, markup
from mitoseg.evaluation.report.objects import plain_table
from mitoseg.evaluation.report.options import Content, ReportOptions
from mitoseg.evaluation.report.origin import origin_section
from mitoseg.evaluation.report.scene import scene_section
from mitoseg.evaluation.report.scoring import score_section
from mitoseg.evaluation.report.slices import slices_section
from mitoseg.evaluation.report.table import table_section
from mitoseg.geometry import Box
from mitoseg.storage import check_output, write_text
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
    present = [(name, heading, body) for name, heading, body in sections if body is not None]
    links = [element("a", heading, href=f"#{name}") for name, heading, _ in present if heading]
    main = [
        element("section", *([element("h2", heading)] if heading else []), body, id=name)
        for name, heading, body in present
    ]
    parts = {
        "title": markup(content.title),
        "style": Html(_static("report.css")),
        "volume": markup(volume_line(content)),
        "links": join(*links),
        "main": join(*main),
        "script": Html("\n".join(_static(name) for name in _SCRIPTS)),
        "version": markup(__version__),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _static("page.html"))


def _static(name: str) -> str:
    return files("mitoseg.evaluation.report").joinpath("static", name).read_text(encoding="utf-8")
