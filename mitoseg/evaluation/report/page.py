"""The report, one HTML file that asks nothing of any other place: each section is a dictionary and a template."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from mitoseg import __version__
from mitoseg.evaluation.instances import SMALL, prediction_instances
from mitoseg.evaluation.report.errors import gallery_section
from mitoseg.evaluation.report.markup import Content, number
from mitoseg.evaluation.report.pictures import hold, plain_table, scene_section, slices_section
from mitoseg.evaluation.report.tables import (
    curve_section,
    distribution_section,
    headline_section,
    interval,
    origin_section,
    score_section,
    table_section,
    text,
)
from mitoseg.segmentation import Labelling
from mitoseg.storage import check_output, plain, write_text
from mitoseg.volumes.base import Volume, mask_volume
from mitoseg.volumes.predicted import decide


def write_report(path: Path | str, *, title: str, overwrite: bool = True, **shown: Any) -> Path:  # noqa: ANN401
    """Write a report, one HTML file; a section appears where there is something to show in it.

    ``shown`` are the fields of `Content`: ``image``, ``truth``, ``mask``, ``instances``, ``table``, ``scores``,
    ``provenance``, ``voxel_size``, ``crop`` and ``options``.
    """
    check_output(path, overwrite)
    write_text(path, render(Content(title, **shown)), overwrite=overwrite)
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
    mask = mask_volume(prediction, decide(prediction, threshold, kind).foreground)
    if instances is None:
        size = shown.get("voxel_size")
        instances = prediction_instances(prediction, labelling, threshold=threshold, kind=kind, voxel_size=size)
    if instances is not prediction:
        instances = hold(instances, shown.get("crop"), small)
    return write_report(path, mask=mask, instances=instances, **shown)


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
        ("curves", "Curves", curve_section(content.scores, content.provenance)),
        ("errors", "Worst errors", gallery_section(content)),
        ("origin", "Where this comes from", origin_section(content.provenance)),
    )
    sizes = zip(content.box.shape, content.spacing, strict=True) if content.box and content.spacing else ()
    extent = [(f"{size:g}", f"{n * size / 1000:.3g}") for n, size in sizes]
    return (
        _templates()
        .get_template("page.html")
        .render(
            title=content.title,
            style=_static("report.css"),
            content=content,
            extent=extent,
            sections=[section for section in sections if section[2] is not None],
            script=Markup("\n").join(_static(f"{name}.js") for name in ("base", "slices", "scene", "table")),
            version=__version__,
        )
    )


@cache
def _templates() -> Environment:
    loader = PackageLoader("mitoseg.evaluation.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_function"] = lambda values, **options: json.dumps(plain(values), **options)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"number": number, "interval": interval, "text": text}
    return environment


def _static(name: str) -> Markup:
    return Markup(files("mitoseg.evaluation.report").joinpath("static", name).read_text(encoding="utf-8"))
