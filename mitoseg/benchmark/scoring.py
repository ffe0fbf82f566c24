"""Scores of what a method has written, whole and of a part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mitoseg.benchmark.records import METRICS, prediction_path
from mitoseg.benchmark.rows import Row, crop_cells
from mitoseg.datasets import Region
from mitoseg.errors import UserError
from mitoseg.evaluation import Evaluation, evaluate, pool_evaluations
from mitoseg.geometry import Box
from mitoseg.storage import read_json, write_json
from mitoseg.volumes import ArrayVolume, open_volume

CROPS = "crops.json"


def score_part(folder: Path, regions: Sequence[Region], part: str) -> Evaluation:
    """Score the predictions in a method's folder and write ``metrics.json``.

    Args:
        folder: The method's.
        regions: What they are of.
        part: Of the data.

    Returns:
        The keys of `mitoseg.evaluation.evaluate`, pooled over the regions.
    """
    found = []
    for i, region in enumerate(regions):
        result = open_volume(str(prediction_path(folder, part, i)))
        found.append(evaluate(result, ArrayVolume(region.read_label(), result.voxel_size, region.label.path)))
    pooled = pool_evaluations(found)
    write_json(folder / METRICS, {part: pooled})
    return pooled


def read_crop(text: object, regions: Sequence[Region]) -> Box | None:
    """The part that is scored as well.

    Raises:
        UserError: It leaves the region, or there are several.
    """
    if text is None:
        return None
    if len(regions) != 1:
        raise UserError("crop= is of one region, there are several", [r.name for r in regions], "leave out crop=")
    return Box.parse(text, regions[0].box.shape)


def score_crop(folder: Path, region: Region, part: str, crop: Box) -> Row:
    """Scores of a part of the one region, kept in ``crops.json``.

    Args:
        folder: The method's, which holds its prediction.
        region: What that is of.
        part: Of the data.
        crop: In coordinates of the region.
    """
    known = read_json(folder / CROPS)
    if str(crop) not in known:
        result = open_volume(str(prediction_path(folder, part, 0)))
        truth = ArrayVolume(region.read_label(), result.voxel_size)
        known[str(crop)] = crop_cells(evaluate(result, truth, crop=crop, bands=()))
        write_json(folder / CROPS, known)
    cells: Row = known[str(crop)]
    return cells
